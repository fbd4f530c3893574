"""NeMo prompt tables: one embedding prompt per task, in a `.nemo` tar (or gzipped tar) or a bare checkpoint.

Format: https://github.com/NVIDIA/NeMo (megatron_gpt_prompt_learning_model.py, `state_dict`): `model_weights.ckpt` is
a `torch.save` file with `{"prompt_table": {"prompt_table.TASK.prompt_embeddings.weight": [P, H]}}`, in older ones a
flat state dict whose keys start with `prompt_table.`. Of P-tuning before its last step there is only an encoder,
which is a network and no prompt.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from pathlib import Path
from typing import Protocol

from softprompt.errors import StoreError
from softprompt.interchange import safe_pickle
from softprompt.interchange.base import ImportedPrompt, embedding_prompt

FORMAT, WEIGHTS = "nemo", "model_weights.ckpt"
MAX_TAR_BYTES = 8 * 2**30
MAX_WEIGHTS_BYTES = 2 * 2**30
GZIP_MAGIC = b"\x1f\x8b"
_KEY = re.compile(r"(?:prompt_table\.)+([^.]+)\.prompt_embeddings\.weight")


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


class _Bounded(io.RawIOBase):
    """A stream that gives at most so many bytes, whatever a compressed file swells to."""

    def __init__(self, stream: _Readable, limit: int) -> None:
        self.stream, self.left = stream, limit

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if size < 0 or size > self.left:
            raise OSError("larger than a prompt table can be")
        self.left -= size
        return self.stream.read(size)


def holds(saved: object) -> bool:
    """Whether a `torch.save` file's content is a prompt table."""
    return isinstance(saved, dict) and any(str(key).startswith(("prompt_table", "prompt_encoder")) for key in saved)


def read_tar(path: Path) -> list[ImportedPrompt]:
    """The prompts of a `.nemo` file. Members are read in memory, in order, and never by the path that they name."""
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == GZIP_MAGIC
            plain.seek(0)
            stream = gzip.GzipFile(fileobj=plain) if zipped else plain
            with tarfile.open(fileobj=_Bounded(stream, MAX_TAR_BYTES), mode="r|") as archive:
                weights = _weights(archive, path)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise StoreError("damaged .nemo file", where=path, got=str(error)[:120]) from error
    where = f"{path}/{WEIGHTS}"
    return read(safe_pickle.read_torch_file(io.BytesIO(weights), where), where)


def read(saved: object, where: object) -> list[ImportedPrompt]:
    """The prompts of a checkpoint, by task."""
    assert isinstance(saved, dict), "see holds"
    table = saved.get("prompt_table", saved)
    found = []
    for key, tensor in table.items() if isinstance(table, dict) else ():
        if match := _KEY.fullmatch(str(key)):
            prompt = embedding_prompt(tensor, f"{where}: {key}"[:200])
            facts = {"name": "prompt_tuning", "imported_from": FORMAT, "task": match[1]}
            found.append(ImportedPrompt(prompt, facts, task=match[1]))
    if not found:
        hint = "in NeMo, finish P-tuning: its last step writes the encoder's output into the prompt table"
        raise StoreError("the prompt table is empty", where=where, hint=hint)
    return found


def _weights(archive: tarfile.TarFile, path: Path) -> bytes:
    for member in archive:
        if member.name.removeprefix("./") == WEIGHTS and member.isreg():
            if member.size > MAX_WEIGHTS_BYTES:
                limit = f"<= {MAX_WEIGHTS_BYTES:,} bytes"
                raise StoreError(f"{WEIGHTS} is too large", where=path, expected=limit, got=f"{member.size:,} bytes")
            file = archive.extractfile(member)
            assert file is not None, "a regular file has content"
            return file.read()
    raise StoreError(f"no {WEIGHTS} in the archive", where=path, expected="a .nemo file of prompt learning")
