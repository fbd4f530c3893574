"""Reads NeMo prompt tables: one embedding prompt per task, in a `.nemo` tar (or gzipped tar) or a bare checkpoint.

Format: https://github.com/NVIDIA/NeMo (megatron_gpt_prompt_learning_model.py, `state_dict`): `model_weights.ckpt` is
a `torch.save` file with `{"prompt_table": {"prompt_table.TASK.prompt_embeddings.weight": [P, H]}}`, in older ones a
flat state dict whose keys start with `prompt_table.`. Of P-tuning before its last step there is only an encoder,
which is a network and no prompt. `model_config.yaml` beside it has the template of each task (`nemo_templates`).
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from softprompt.errors import StoreError
from softprompt.interchange import safe_pickle
from softprompt.interchange.base import ImportedPrompt, embedding_prompt
from softprompt.interchange.foreign_file import ForeignFile
from softprompt.interchange.nemo_templates import NemoTemplate, nemo_templates
from softprompt.interchange.registry import Format, register_format
from softprompt.models.geometry import Geometry

MAX_TAR_BYTES = 8 * 2**30  # of an archive when unpacked
MAX_WEIGHTS_BYTES = 2 * 2**30  # of the checkpoint in it
_NAME = "nemo"
_WEIGHTS = "model_weights.ckpt"  # the member of the archive with the prompt table
_CONFIG = "model_config.yaml"  # the member with the templates
MAX_CONFIG_BYTES = 2**20
_GZIP_MAGIC = b"\x1f\x8b"
_TAR_MAGIC = b"ustar"
_TAR_OFFSET = 257  # of the magic in the first header block
_KEY = re.compile(r"(?:prompt_table\.)+([^.]+)\.prompt_embeddings\.weight")


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


class _Bounded(io.RawIOBase):
    """A stream that raises OSError after `limit` bytes, so that a compressed file cannot swell without bound."""

    def __init__(self, stream: _Readable, limit: int) -> None:
        self.stream = stream
        self.left = limit

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if size < 0 or size > self.left:
            raise OSError("larger than a prompt table can be")
        self.left -= size
        return self.stream.read(size)


def _matches(file: ForeignFile) -> bool:
    saved = file.torch_object
    has_table = isinstance(saved, dict) and any(str(k).startswith(("prompt_table", "prompt_encoder")) for k in saved)
    return has_table or _is_tar(file)


def read(file: ForeignFile, geometry: Geometry) -> list[ImportedPrompt]:
    """The prompts of a `.nemo` file or checkpoint, one for each task."""
    return _read_tar(file.path) if _is_tar(file) else _read_checkpoint(file.torch_object, file.path)


def _is_tar(file: ForeignFile) -> bool:
    at_offset = file.head[_TAR_OFFSET : _TAR_OFFSET + len(_TAR_MAGIC)]
    return file.head.startswith(_GZIP_MAGIC) or at_offset == _TAR_MAGIC


def _read_tar(path: Path) -> list[ImportedPrompt]:
    """Members are read in memory, in order, and never by the path that they name."""
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            stream = gzip.GzipFile(fileobj=plain) if zipped else plain
            with tarfile.open(fileobj=_Bounded(stream, MAX_TAR_BYTES), mode="r|") as archive:
                members = _members(archive, path)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise StoreError("damaged .nemo file", where=path, got=str(error)[:120]) from error
    if _WEIGHTS not in members:
        raise StoreError(f"no {_WEIGHTS} in the archive", where=path, expected="a .nemo file of prompt learning")
    templates = nemo_templates(members.get(_CONFIG, b""), f"{path}/{_CONFIG}")
    where = f"{path}/{_WEIGHTS}"
    return _read_checkpoint(safe_pickle.read_torch_file(io.BytesIO(members[_WEIGHTS]), where), where, templates)


def _read_checkpoint(
    saved: object, where: object, templates: Mapping[str, NemoTemplate] | None = None
) -> list[ImportedPrompt]:
    assert isinstance(saved, dict), "see _matches"
    table = saved.get("prompt_table", saved)
    prompts: list[ImportedPrompt] = []
    for key, tensor in table.items() if isinstance(table, dict) else ():
        if match := _KEY.fullmatch(str(key)):
            prompt = embedding_prompt(tensor, f"{where}: {key}"[:200])
            method = {"name": "prompt_tuning", "imported_from": _NAME, "task": match[1]}
            template = (templates or {}).get(match[1])
            layout = template.layout(prompt.n_tokens, f"{where}: {key}"[:200]) if template else None
            prompts.append(ImportedPrompt(prompt, method, task=match[1], layout=layout))
    if not prompts:
        hint = "in NeMo, finish P-tuning: its last step writes the encoder's output into the prompt table"
        raise StoreError("the prompt table is empty", where=where, hint=hint)
    return prompts


def _members(archive: tarfile.TarFile, path: Path) -> dict[str, bytes]:
    """The weights and the config, as far as they are there."""
    limits, members = {_WEIGHTS: MAX_WEIGHTS_BYTES, _CONFIG: MAX_CONFIG_BYTES}, dict[str, bytes]()
    for member in archive:
        name = member.name.removeprefix("./")
        if name in limits and member.isreg():
            if member.size > limits[name]:
                limit = f"<= {limits[name]:,} bytes"
                raise StoreError(f"{name} is too large", where=path, expected=limit, got=f"{member.size:,} bytes")
            file = archive.extractfile(member)
            assert file is not None, "a regular file has content"
            members[name] = file.read()
            if members.keys() == limits.keys():
                break
    return members


register_format(Format(_NAME, _matches, read, torch_keys="prompt_table (NeMo)"))
