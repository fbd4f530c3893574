"""Files of a store that fsspec knows (s3://, gs://, abfs://, hf://, file://, memory://), read within bounds.

A store may stall for ever and cannot be interrupted. So its calls run in threads of their own (`Waited`), and who waits
for one stops waiting when nothing has arrived for a while.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Generic, Protocol, TypeVar, cast

from softprompt.errors import (
    MissingExtraError,
    SoftpromptError,
    StoreError,
    UnreachableError,
    first_line,
    missing_extra,
)

_BLOCK = 2**20  # bytes read at a time
_STAMPS = ("etag", "blob_id", "md5", "content_md5", "mtime", "last_modified", "lastmodified", "updated", "created")
_T = TypeVar("_T")


class _FileSystem(Protocol):
    """The methods of fsspec's AbstractFileSystem that are used."""

    def invalidate_cache(self) -> None: ...

    def find(self, path: str, *, detail: bool) -> dict[str, dict[str, object]]: ...

    def ls(self, path: str) -> list[object]: ...

    def cat(self, path: list[str], *, on_error: str) -> bytes | dict[str, object]: ...

    def cat_file(self, path: str, *, start: int, end: int) -> bytes: ...

    def open(self, path: str, mode: str) -> IO[bytes]: ...


@dataclass(frozen=True)
class RemoteFile:
    """A file in a listing: bytes, a stamp that changes with it, and when it was written (0 if that is not known)."""

    size: int
    stamp: str
    written: int


class RemoteFiles:
    """The files below a URL. Every method may take arbitrarily long.

    Raises ConfigError for a URL that cannot be used, MissingExtraError if a package for it is missing.
    """

    def __init__(self, url: str) -> None:
        self.shown = shown_url(url)
        try:
            from fsspec.core import (  # pyright: ignore[reportMissingTypeStubs]
                url_to_fs,  # pyright: ignore[reportUnknownVariableType]
            )
        except ImportError as error:
            raise missing_extra("fsspec", "remote", where=self.shown) from error
        try:
            opened = cast("tuple[_FileSystem, str]", url_to_fs(url))
        except ImportError as error:
            protocol = url.split("://")[0]
            what, hint = f"{protocol}:// needs a package of its own", f"pip install {_package_of(protocol)}"
            raise MissingExtraError(what, where=self.shown, got=first_line(error), hint=hint) from error
        except Exception as error:  # of any of fsspec's file systems: a wrong protocol, a malformed URL, no credentials
            raise StoreError(f"cannot be opened: {first_line(error)}", where=self.shown, hint=_HINT) from error
        self._system = opened[0]
        self._root = opened[1].rstrip("/")

    def find(self) -> dict[str, RemoteFile]:
        """All files by their paths below the root; none if it is empty or missing."""
        with _Explained(self.shown):
            self._system.invalidate_cache()
            try:
                found = self._system.find(self._root, detail=True)
                if not found:  # many file systems list nothing where they failed: this raises the error
                    self._system.ls(self._root)
            except FileNotFoundError:
                return {}
        return {path[len(self._root) :].strip("/"): _remote_file(info) for path, info in found.items()}

    def read(self, path: str, limit: int) -> bytes | None:
        """The contents of a small file; None if there is no such file. Raises StoreError if it is larger than that."""
        with _Explained(f"{self.shown}/{path}"):
            try:
                content = self._system.cat_file(f"{self._root}/{path}", start=0, end=limit + 1)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
        if len(content) > limit:
            raise StoreError("file too large", where=f"{self.shown}/{path}", expected=f"<= {limit:,} bytes")
        return content

    def read_all(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Several small files at once, by path; those that cannot be read are missing."""
        wanted = {f"{self._root}/{path}": path for path in paths}
        if not wanted:
            return {}
        with _Explained(self.shown):
            read = self._system.cat(list(wanted), on_error="return")
        if isinstance(read, bytes):
            return dict.fromkeys(wanted.values(), read)
        return {
            wanted[path]: content for path, content in read.items() if path in wanted and isinstance(content, bytes)
        }

    def download(self, path: str, target: Path, limit: int, progress: Callable[[], None]) -> None:
        """Copy a file to this machine. Raises StoreError if it is larger than `limit` bytes."""
        left = limit
        where = f"{self.shown}/{path}"
        with (
            _Explained(where),
            target.open("wb") as file,
            self._system.open(f"{self._root}/{path}", "rb") as source,
        ):
            while block := source.read(_BLOCK):
                left -= len(block)
                if left < 0:
                    raise StoreError("file too large", where=where, expected=f"<= {limit:,} bytes")
                file.write(block)
                progress()


class Waited(Generic[_T]):
    """A call in a thread of its own, for which others wait.

    Args:
        work: the call; it gets a function that says that something has arrived.
    """

    def __init__(self, work: Callable[[Callable[[], None]], _T]) -> None:
        self.began = self.arrived = time.monotonic()
        self._done = threading.Event()
        self._result: tuple[_T] | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(work,), daemon=True, name="softprompt-store").start()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._done.is_set()

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    @property
    def silent_s(self) -> float:
        """Seconds since something has arrived."""
        return time.monotonic() - self.arrived

    def result(self, patience_s: float, where: str) -> _T:
        """Its result, or its error. Raises StoreError if nothing has arrived for `patience_s` seconds."""
        while not self._done.wait(max(0.0, min(patience_s - self.silent_s, patience_s))):
            if self.silent_s >= patience_s:
                raise UnreachableError("the store does not answer", where=where, hint=_HINT)
        if self._result is None:
            raise cast("BaseException", self._error)
        return self._result[0]

    def _run(self, work: Callable[[Callable[[], None]], _T]) -> None:
        try:
            self._result = (work(self._progress),)
        except BaseException as error:  # re-raised where it is waited for
            self._error = error
        self._done.set()

    def _progress(self) -> None:
        self.arrived = time.monotonic()


class _Explained:
    """Turns the errors of any file system into a StoreError."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise StoreError("no such file or folder", where=self._where, hint=_HINT) from error
        if isinstance(error, Exception) and not isinstance(error, SoftpromptError):
            reason = first_line(error)[:200]
            raise UnreachableError(f"the store cannot be read: {reason}", where=self._where, hint=_HINT) from error


def shown_url(url: str) -> str:
    """A URL without the user and password in it."""
    return re.sub(r"//[^/@]*@", "//", url.rstrip("/"))


def digest_of(content: bytes) -> str:
    """The sha256 of a file's contents."""
    return hashlib.sha256(content).hexdigest()


def _remote_file(info: Mapping[str, object]) -> RemoteFile:
    facts = {key.lower().replace("-", "_"): value for key, value in info.items()}
    size = facts.get("size")
    stamp = "|".join(f"{facts[key]}" for key in ("size", *_STAMPS) if facts.get(key) is not None)
    return RemoteFile(size if isinstance(size, int) else 0, stamp, _seconds(facts))


def _seconds(facts: Mapping[str, object]) -> int:
    """When a file was written, in seconds since 1970; 0 if its store does not say."""
    for key in ("mtime", "last_modified", "lastmodified", "updated", "created"):
        value = facts.get(key)
        if isinstance(value, int | float):
            return int(value)
        if hasattr(value, "timestamp"):
            return int(cast("Callable[[], float]", getattr(value, "timestamp"))())  # noqa: B009 - its type is unknown
    return 0


def _package_of(protocol: str) -> str:
    """The package that fsspec wants for a protocol."""
    from fsspec.registry import known_implementations  # pyright: ignore[reportMissingTypeStubs]

    known = known_implementations.get(protocol, {})
    package = str(known.get("class", "")).split(".")[0]
    return package if package not in ("", "fsspec") else f"fsspec[{protocol}]"


_HINT = "check the URL, the network and your rights; credentials come from where its package looks for them"
