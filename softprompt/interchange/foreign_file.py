"""A file or folder of another tool, opened lazily while the formats look for their own contents in it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import final

from softprompt.interchange.base import zip_archive
from softprompt.interchange.safe_pickle import read_torch_file

_HEAD_BYTES = 512  # one tar header block
_ZIP_MAGIC = b"PK"
_LENGTH_BYTES = 8  # of a safetensors header's length


@final
class ForeignFile:
    """A path whose contents are read once and shared by all formats. Nothing in the file is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def head(self) -> bytes:
        """The first 512 bytes; empty for a folder."""
        if not self.path.is_file():
            return b""
        with self.path.open("rb") as file:
            return file.read(_HEAD_BYTES)

    @property
    def is_zip(self) -> bool:
        """Whether it begins like a zip archive, which a `torch.save` file is, too."""
        return self.head.startswith(_ZIP_MAGIC)

    @cached_property
    def zip_names(self) -> tuple[str, ...]:
        """The members of a zip archive; none for other files. Raises StoreError for a damaged archive."""
        if not self.is_zip:
            return ()
        with zip_archive(self.path, self.path) as archive:
            return tuple(archive.namelist())

    def member(self, name: str) -> Path:
        """A file of this folder; in the Hub's local cache, where it is a link, the blob of the same repository."""
        path = self.path / name
        target = path.resolve()
        in_cache = target.parent.name == "blobs" and target.parents[1] in self.path.absolute().parents
        return target if path.is_symlink() and in_cache else path

    @property
    def is_safetensors(self) -> bool:
        """Whether it begins like a safetensors file: the length of a JSON header, then that header."""
        length = int.from_bytes(self.head[:_LENGTH_BYTES], "little")
        return self.head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and length < self.path.stat().st_size

    @cached_property
    def torch_object(self) -> object:
        """The object in a `torch.save` file; None for other files.

        Raises StoreError for a damaged file, or a pickle that does more than describe tensors.
        """
        if not any(name.endswith("/data.pkl") for name in self.zip_names):
            return None
        with self.path.open("rb") as file:
            return read_torch_file(file, self.path)
