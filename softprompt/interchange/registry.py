"""Soft prompts of other tools: which format a path is, what is in it, and PEFT adapters out of ours.

    detect(path)                    peft, google-prompt-tuning, nemo, cartridges or koboldai; by content, not by name
    read(path, geometry)            every prompt in it
    adopt(lm, found, name)          the card to save one with
    peft.write(folder, prompt, …)   a PEFT adapter

Foreign files are data: nothing is unpickled, unpacked to disk, downloaded or run, and every size is checked before
anything is allocated. What a file cannot say without running code is refused, with the reason.
"""

from __future__ import annotations

from pathlib import Path

from softprompt.errors import StoreError
from softprompt.interchange import cartridges, google, kobold, nemo, npy, peft, safe_pickle
from softprompt.interchange.base import ImportedPrompt, zip_archive
from softprompt.models.geometry import Geometry

FORMATS = (peft.FORMAT, google.FORMAT, nemo.FORMAT, cartridges.FORMAT, kobold.FORMAT)
_TORCH, _TAR = "torch", "tar"
_TAR_MAGIC, _TAR_AT = b"ustar", 257


def detect(path: Path) -> str:
    """One of `FORMATS`. A `torch.save` file is read for it. Raises StoreError, with a hint, for anything else."""
    kind = _kind(path)
    if kind == _TAR:
        return nemo.FORMAT
    return _torch_format(_torch(path), path) if kind == _TORCH else kind


def read_foreign(path: Path, geometry: Geometry) -> list[ImportedPrompt]:
    """Every soft prompt in a foreign file or folder, not yet checked against the base model but for PEFT prefixes.

    Raises:
        StoreError: no known format, damaged, or code in a pickle.
        GeometryError: a PEFT prefix of another base model.
    """
    kind = _kind(path)
    if kind == peft.FORMAT:
        return peft.read(path, geometry)
    if kind == google.FORMAT:
        return google.read(path)
    if kind == kobold.FORMAT:
        return kobold.read(path)
    if kind == _TAR:
        return nemo.read_tar(path)
    saved = _torch(path)
    return {cartridges.FORMAT: cartridges.read, nemo.FORMAT: nemo.read}[_torch_format(saved, path)](saved, path)


def _kind(path: Path) -> str:
    """The container: a format, or a torch file or tar that has to be looked into."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise StoreError("no such file or folder", where=path)
    with path.open("rb") as file:
        start = file.read(_TAR_AT + len(_TAR_MAGIC))
    if start.startswith(npy.MAGIC):
        return google.FORMAT
    if start.startswith(nemo.GZIP_MAGIC) or start[_TAR_AT:] == _TAR_MAGIC:
        return _TAR
    if start.startswith(b"PK"):
        return kobold.FORMAT if kobold.TENSOR in _names(path) else _TORCH
    if start.startswith(b"\x80") and start[1:2] in b"\x02\x03\x04\x05":
        what = "this is a bare pickle, which can only be read by running it"
        raise StoreError(what, where=path, hint="save it anew with torch.save of PyTorch 1.6 or later, or safetensors")
    hint = "give the folder that holds it" if (path.parent / peft.CONFIG).exists() else None
    raise StoreError("unknown format", where=path, expected=f"one of {', '.join(FORMATS)}", hint=hint)


def _folder(path: Path) -> str:
    if (path / peft.CONFIG).exists():
        return peft.FORMAT
    if (path / "card.json").exists():
        raise StoreError("this is a softprompt artifact already", where=path, hint=f"softprompt show {path}/")
    hint = "for other formats give the file itself"
    raise StoreError(f"no {peft.CONFIG} in this folder", where=path, expected="a PEFT adapter", hint=hint)


def _names(path: Path) -> list[str]:
    with zip_archive(path, path) as archive:
        return archive.namelist()


def _torch(path: Path) -> object:
    with path.open("rb") as file:
        return safe_pickle.read_torch_file(file, path)


def _torch_format(saved: object, path: Path) -> str:
    for reader in (cartridges, nemo):
        if reader.holds(saved):
            return reader.FORMAT
    expected = "trainable_keys and trainable_values (Cartridges), or prompt_table (NeMo)"
    raise StoreError("a torch.save file that holds no soft prompt of a known format", where=path, expected=expected)
