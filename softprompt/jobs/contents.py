"""Contents of files, each stored once under its sha256; the names that clients give them never become paths."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from softprompt.errors import QuotaError, StoreError
from softprompt.files import sync, writing

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Content:
    """A stored content: its digest and size."""

    sha256: str
    bytes: int


class Upload:
    """A content that arrives in chunks. As a context it removes what was not kept.

    Attributes:
        max_bytes: 0 is no maximum.
        bytes: how many have come.
    """

    def __init__(self, folder: Path, max_bytes: int = 0) -> None:
        self._folder, self.max_bytes = folder, max_bytes
        self._digest, self.bytes = hashlib.sha256(), 0
        self.path = folder / f".upload-{secrets.token_hex(8)}"
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("xb")

    def write(self, chunk: bytes) -> None:
        """Append a chunk. Raises QuotaError if the file becomes too large, StoreError if the disk refuses."""
        self.bytes += len(chunk)
        if self.max_bytes and self.bytes > self.max_bytes:
            got = f"more than {self.max_bytes:,}"
            raise QuotaError("the file is too large", expected=f"<= {self.max_bytes:,} bytes", got=got)
        self._digest.update(chunk)
        with writing(self.path):
            self._file.write(chunk)

    def flush(self) -> Path:
        """Everything so far as a file that may be read, e.g. to check its rows."""
        with writing(self.path):
            self._file.flush()
        return self.path

    def keep(self) -> Content:
        """Store the content under its digest, on disk before this returns."""
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            content = Content(self._digest.hexdigest(), self.bytes)
            target = self._folder / content.sha256
            if not target.is_file():
                self.path.chmod(0o644)
                os.replace(self.path, target)
                sync(self._folder)
        return content

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


class Contents:
    """All contents, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def upload(self, max_bytes: int = 0) -> Upload:
        """A new content to write."""
        return Upload(self.folder, max_bytes)

    def add(self, data: bytes) -> Content:
        """Store bytes."""
        with self.upload() as upload:
            upload.write(data)
            return upload.keep()

    def path(self, sha256: str) -> Path:
        """Where a content lies. Raises StoreError if it is not there."""
        path = self.folder / sha256
        if not _SHA256.fullmatch(sha256) or not path.is_file():
            raise StoreError("the content of the file is gone", where=sha256[:12])
        return path

    def remove(self, sha256: str) -> None:
        """Delete a content, if it is there."""
        with contextlib.suppress(OSError):
            (self.folder / sha256).unlink(missing_ok=True)
