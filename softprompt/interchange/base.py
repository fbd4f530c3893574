"""What every reader of a foreign file gives back.

Shapes: P virtual tokens, H embedding width.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from softprompt.data.template import Template
from softprompt.errors import StoreError
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import DTYPES, EmbeddingPrompt

_DAMAGED_ZIP = (
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    MemoryError,
    RuntimeError,
    ValueError,
)
SAFE_HINT = "if you trust the file, convert it to safetensors in an environment that you can throw away"


@dataclass(frozen=True)
class ImportedLayout:
    """How softprompt itself framed a prompt that it exported; foreign tools write none.

    Attributes:
        template: how records become rows.
        bos: whether the text behind the virtual tokens begins with BOS.
        labels: the classes of a classification prompt.
    """

    template: Template
    bos: bool
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ImportedPrompt:
    """One soft prompt in a foreign file.

    Attributes:
        prompt: not yet checked against a base model, see `prompt.check_fits`.
        facts: what the card says under `method`: name and imported_from at least; never a path.
        task: its name within the file; empty if the file holds only one.
        made_for: the base model that the file names, for display; empty if it names none.
        frame: of a prompt that softprompt exported, else None.
    """

    prompt: SoftPrompt
    facts: dict[str, Any]
    task: str = ""
    made_for: str = ""
    frame: ImportedLayout | None = None


@contextmanager
def zip_archive(file: Path | IO[bytes], where: object) -> Iterator[zipfile.ZipFile]:
    """A zip to read members of, never to unpack to disk; whatever a damaged one raises becomes a StoreError."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except _DAMAGED_ZIP as error:
        raise StoreError("damaged file, or not the zip that it should be", where=where, got=str(error)[:120]) from error


def embedding_prompt(tensor: object, where: object) -> EmbeddingPrompt:
    """An embedding prompt of a tensor [P, H]; float64 becomes float32. StoreError for anything else."""
    if not isinstance(tensor, Tensor) or tensor.ndim != 2 or not tensor.is_floating_point():
        raise StoreError("no table of virtual tokens", where=where, expected="[P, H], floats", got=shown_path(tensor))
    return EmbeddingPrompt(usable(tensor))


def usable(tensor: Tensor) -> Tensor:
    """In a dtype that soft prompts have, sharing no memory with the file."""
    return tensor.to(tensor.dtype if tensor.dtype in DTYPES else torch.float32).contiguous().clone()


def shown_path(value: object) -> str:
    """A foreign value in a message: type and shape, never its contents."""
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
