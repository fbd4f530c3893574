"""The registry of foreign formats.

    detect_format(path)                      the name of the format, by content
    read_foreign(path, geometry)      every soft prompt in it
    import_card(lm, prompt, name)     the card to save one with
    writable()                        the formats that can also be written

A format is one module of this package, which calls `register_format` when it is imported; all of them are imported
when the registry is first used. A format of another package is registered in the same way.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import softprompt.interchange
from softprompt.errors import StoreError
from softprompt.interchange.base import ImportedPrompt
from softprompt.interchange.foreign_file import ForeignFile
from softprompt.interchange.safe_pickle import read_torch_file
from softprompt.models.geometry import Geometry
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card


@dataclass(frozen=True)
class Format:
    """A file format in which another tool keeps soft prompts.

    Attributes:
        name: as shown by `softprompt import`, stored in cards, and given to `softprompt export --to`.
        matches: whether a file or folder has this format, by its content.
        read: every soft prompt in it, not yet checked against the base model, whose geometry is given.
        write: make a folder of this format from a prompt, its card, and the embeddings [N, H] of the tokens before its
            virtual tokens; None for a format that is only read.
        marker: the file by which a folder of this format is recognized; "" for a format of single files.
        torch_keys: the contents by which a `torch.save` file is recognized, for error messages.
        first: tried before all others, whose files its folders hold, too.
        last: tried after all others, since it takes files that those know better.
    """

    name: str
    matches: Callable[[ForeignFile], bool]
    read: Callable[[ForeignFile, Geometry], list[ImportedPrompt]]
    write: Callable[[Path, SoftPrompt, Card, Tensor], None] | None = None
    marker: str = ""
    torch_keys: str = ""
    first: bool = False
    last: bool = False


_FORMATS: dict[str, Format] = {}


def register_format(new: Format) -> Format:
    """Make a format known. Raises ValueError if another one has its name."""
    if _FORMATS.setdefault(new.name, new) is not new:
        raise ValueError(f"a format named {new.name!r} is registered already")
    return new


def unregister_format(name: str) -> None:
    """Forget a format."""
    del _FORMATS[name]


def formats() -> dict[str, Format]:
    """All registered formats by name."""
    _import_own_modules()
    return _FORMATS


def writable() -> dict[str, Callable[[Path, SoftPrompt, Card, Tensor], None]]:
    """The writers of the formats that have one, by name."""
    return {name: known.write for name, known in formats().items() if known.write is not None}


def detect_format(path: Path) -> str:
    """The name of the format of a file or folder. Raises StoreError, with a hint, if no format matches."""
    return _format_of(ForeignFile(path)).name


def read_foreign(path: Path, geometry: Geometry) -> list[ImportedPrompt]:
    """Every soft prompt in a foreign file or folder, not yet checked against the base model except for PEFT prefixes.

    Raises:
        StoreError: no known format, a damaged file, or a pickle that runs code.
        GeometryError: a PEFT prefix of another base model.
    """
    file = ForeignFile(path)
    return _format_of(file).read(file, geometry)


@functools.cache
def _import_own_modules() -> None:
    for module in pkgutil.iter_modules(softprompt.interchange.__path__):
        importlib.import_module(f"{softprompt.interchange.__name__}.{module.name}")


def in_known_folder(path: Path) -> bool:
    """Whether the file is part of a folder that is one prompt as a whole, an adapter's or softprompt's own."""
    markers = ("card.json", *(known.marker for known in formats().values() if known.marker))
    return any((path.parent / marker).exists() for marker in markers)


def _format_of(file: ForeignFile) -> Format:
    if not file.path.is_dir() and not file.path.is_file():
        raise StoreError("no such file or folder", where=file.path)
    for known in sorted(formats().values(), key=lambda known: known.last - known.first):
        if known.matches(file):
            return known
    raise _unknown_folder(file.path) if file.path.is_dir() else _unknown_file(file)


def _unknown_folder(path: Path) -> StoreError:
    if (path / "card.json").exists():
        return StoreError("this is a softprompt artifact already", where=path, hint=f"softprompt show {path}/")
    markers = {known.marker: f"a {known.name} folder" for known in formats().values() if known.marker}
    return StoreError(
        f"no {' or '.join(markers)} in this folder",
        where=path,
        expected=" or ".join(markers.values()),
        hint="for other formats give the file itself",
    )


def _unknown_file(file: ForeignFile) -> StoreError:
    path = file.path
    if file.is_zip:
        with path.open("rb") as stream:
            read_torch_file(stream, path)  # raises unless it is a torch.save file
        if in_known_folder(path):
            return _part_of_folder(path)
        expected = ", or ".join(known.torch_keys for known in formats().values() if known.torch_keys)
        return StoreError(
            "a torch.save file that holds no soft prompt of a known format", where=path, expected=expected
        )
    if file.head.startswith(b"\x80") and file.head[1:2] in b"\x02\x03\x04\x05":
        what = "this is a bare pickle, which can only be read by running it"
        return StoreError(what, where=path, hint="save it anew with torch.save of PyTorch 1.6 or later, or safetensors")
    if in_known_folder(path):
        return _part_of_folder(path)
    return StoreError("unknown format", where=path, expected=f"one of {', '.join(formats())}")


def _part_of_folder(path: Path) -> StoreError:
    ours = (path.parent / "card.json").exists()
    hint = f"softprompt show {path.parent}/" if ours else "give the folder that holds it"
    return StoreError("this file is only a part of a soft prompt", where=path, hint=hint)
