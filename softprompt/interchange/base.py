"""The result of reading a foreign file, and checks that all formats share.

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
from typing import IO

import torch
from torch import Tensor

from softprompt.data.template import Template
from softprompt.errors import StoreError
from softprompt.models.geometry import Geometry
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Layout
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
SAFE_HINT = (
    "if you trust the file, load it in an environment that you can throw away, and save its tensors alone:"
    " torch.save({name: tensor}, FILE), or safetensors"
)


@dataclass(frozen=True)
class ImportedLayout:
    """How a prompt is fed, where its file says so: those of softprompt's own exports, and of NeMo.

    Attributes:
        template: how records become rows.
        bos: whether the text after the virtual tokens begins with BOS.
        labels: the classes of a classification prompt.
        base: of the model that the prompt was trained for.
        around: the text around the virtual tokens, if they do not come before everything.
    """

    template: Template
    bos: bool
    labels: tuple[str, ...] = ()
    base: Geometry | None = None
    around: Layout | None = None


@dataclass(frozen=True, eq=False)
class ImportedPrompt:
    """One soft prompt in a foreign file.

    Attributes:
        prompt: not yet checked against a base model, see `forms.check_fits`.
        method: the card's field of that name: name and imported_from at least; never a path.
        task: name within the file; empty if the file holds only one prompt.
        made_for: the base model named in the file, for display; may be empty.
        layout: of a file that says how its prompt is fed, else None.
    """

    prompt: SoftPrompt
    method: dict[str, object]
    task: str = ""
    made_for: str = ""
    layout: ImportedLayout | None = None


@contextmanager
def zip_archive(file: Path | IO[bytes], where: object) -> Iterator[zipfile.ZipFile]:
    """Open a zip to read its members in memory. Raises StoreError for a damaged one."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except _DAMAGED_ZIP as error:
        raise StoreError("damaged file, or not the zip that it should be", where=where, got=str(error)[:120]) from error


def embedding_prompt(tensor: object, where: object) -> EmbeddingPrompt:
    """An embedding prompt from a tensor [P, H]; float64 becomes float32. Raises StoreError for anything else."""
    if not isinstance(tensor, Tensor) or tensor.ndim != 2 or not tensor.is_floating_point():
        raise StoreError("no table of virtual tokens", where=where, expected="[P, H], floats", got=shown_path(tensor))
    return EmbeddingPrompt(usable(tensor))


def usable(tensor: Tensor) -> Tensor:
    """A copy in a dtype that soft prompts may have, which shares no memory with the file."""
    return tensor.to(tensor.dtype if tensor.dtype in DTYPES else torch.float32).contiguous().clone()


def shown_path(value: object) -> str:
    """A foreign value for error messages: its type and shape, never its contents."""
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
