"""Writing and reading files so that a crash at any moment leaves the old or the new content, never half of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from softprompt.errors import CheckpointError, StoreError
from softprompt.json_types import JSON, JSONObject

if TYPE_CHECKING:  # torch takes seconds to import, and `softprompt --help` needs this module
    from torch import Tensor

MAX_JSON_BYTES = 16 * 2**20
MAX_TENSOR_BYTES = 8 * 2**30
MAX_TENSORS = 10_000
READABLE = 0o644  # safetensors writes for its owner alone; a server may run as someone else


def write_folder(target: Path, fill: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Make the folder `target` with what `fill` writes in it (plain files), all or nothing.

    `fill` gets an empty folder beside the target; its files are flushed to disk and the folder is renamed into
    place. With `overwrite` the old folder steps aside under `.NAME.old` first; `recover_folder` puts it back
    if the process died between the two renames.

    Raises:
        StoreError: the target exists and `overwrite` is off, or is no folder, or the disk refused.
    """
    recover_folder(target)
    if os.path.lexists(target):
        if not overwrite:
            hint = "choose another name or --overwrite"
            raise StoreError("already there, nothing was written", where=target, hint=hint)
        if target.is_symlink() or not target.is_dir():
            raise StoreError("not a folder, nothing was written", where=target, hint="choose another name")
    scratch = None
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
            fill(scratch)
            for path in scratch.iterdir():
                path.chmod(READABLE)
                sync(path)
            sync(scratch)
            scratch.chmod(0o755)
            old = _aside(target)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)  # left by a process that died before it could
                os.rename(target, old)
            os.rename(scratch, target)
            sync(target.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        recover_folder(target)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder at once for everyone who looks for it: it gets another name first.

    Raises StoreError if the disk refuses; then nothing has changed.
    """
    with writing(folder):
        gone = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
        os.rename(folder, gone)  # an empty folder is replaced
        sync(folder.parent)
    shutil.rmtree(gone, ignore_errors=True)


def write_file(target: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write a file, all or nothing; its folder is made if it is missing.

    Raises:
        StoreError: the file exists and `overwrite` is off, or the disk refused.
    """
    if os.path.lexists(target) and not overwrite:
        raise StoreError("already there, nothing was written", where=target, hint="another name, or --overwrite")
    scratch = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(content)
            sync(scratch)
            os.replace(scratch, target)
            sync(target.parent)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the disk's refusal (full, read-only, not a folder) into a StoreError."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StoreError(f"cannot write: {reason}", where=target, hint="free space or another folder") from error


def check_writable(folder: Path) -> None:
    """Raise StoreError if `folder` could not be made and written in; nothing is made."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise StoreError("not a folder, nothing can be written in it", where=nearest, hint="choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise StoreError("this folder may not be written to", where=nearest, hint="choose another place")


def check_run_folder(
    run: Path, unfinished: bool, cached: bool = False, *, overwrite: bool = False, resume: bool = False
) -> None:
    """Refuse to overwrite an unfinished run, or to resume where there is nothing.

    Args:
        unfinished: the folder has a checkpoint.
        cached: other work of an interrupted run can be resumed.

    Raises:
        StoreError: an unfinished run is there, or the folder could not be written in.
        CheckpointError: there is nothing to resume.
    """
    check_writable(run)
    if unfinished and not resume and not overwrite:
        hint = "--resume to continue it, or --overwrite to start again"
        raise StoreError("an unfinished run of that name exists", where=run, hint=hint)
    if resume and not (unfinished or cached):
        raise CheckpointError("there is nothing to resume", where=run, hint="run it without --resume")


def recover_folder(target: Path) -> None:
    """Undo an overwrite that died between its two renames, if the folder may be written to."""
    old = _aside(target)
    if old.is_dir() and not target.exists():
        with contextlib.suppress(OSError):  # read-only, or another process was faster
            os.rename(old, target)


def recover_all(folder: Path, holding: str) -> None:
    """`recover_folder` for every folder directly below `folder` that holds a file of this name."""
    for file in folder.glob(f"{_aside(Path('*'))}/{holding}"):
        old = file.parent
        recover_folder(old.with_name(old.name[1 : -len(".old")]))


def write_json(path: Path, data: object) -> None:
    """Pretty JSON, UTF-8; StoreError for NaN and what else JSON cannot hold."""
    try:
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        path.write_bytes(text.encode())
    except (ValueError, TypeError) as error:
        raise StoreError(f"cannot be written as JSON: {error}", where=path) from error


def read_json(path: Path) -> JSON:
    """The value in a JSON file. Raises StoreError for a missing, oversized, linked or broken file."""
    _check_plain(path, MAX_JSON_BYTES)
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except OSError as error:
        raise StoreError(f"cannot be read: {error.strerror or error}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"not valid JSON: {error}", where=path) from error


def read_tensors(
    path: Path, check: Callable[[Mapping[str, tuple[tuple[int, ...], str]]], None] | None = None
) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        check: called with the shape and dtype ("F32", "BF16", …) of every tensor, by name, before any is loaded.

    Raises StoreError for a missing, oversized, linked or damaged file.
    """
    _check_plain(path, MAX_TENSOR_BYTES)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise StoreError("too many tensors", where=path, expected=f"<= {MAX_TENSORS}", got=len(names))
            if check is not None:
                entries = {name: file.get_slice(name) for name in names}
                check({name: (tuple(entry.get_shape()), entry.get_dtype()) for name, entry in entries.items()})
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreError(f"damaged safetensors file: {error}", where=path, hint="restore it from its source") from error


def _check_plain(path: Path, limit: int) -> None:
    if (path.is_symlink() and not _is_in_hub_cache(path)) or not path.is_file():
        raise StoreError("no such file" if not path.exists() else "not a plain file", where=path)
    size = path.stat().st_size
    if size > limit:
        raise StoreError("file too large", where=path, expected=f"<= {limit:,} bytes", got=f"{size:,} bytes")


def _is_in_hub_cache(link: Path) -> bool:
    """Whether a link is one of the Hub's cache: snapshots/REVISION/FILE, to a file directly in blobs/ beside it."""
    folder = link.parent.parent
    return folder.name == "snapshots" and link.resolve().parent == folder.parent.resolve() / "blobs"


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[str, JSON]]) -> JSONObject:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"duplicate key {next(k for k in keys if keys.count(k) > 1)!r}")
    return dict(pairs)


def sync(path: Path) -> None:
    """Flush a file or folder to disk, so that a rename after it cannot outrun its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
