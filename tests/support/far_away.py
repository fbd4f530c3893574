"""A store far away: a file system of fsspec in memory that can be told to hang, or to fail."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

URL = "faraway://bucket/prompts"


class FarAway(MemoryFileSystem):
    """`faraway://`: its files are in memory; every call waits for `answers` and may fail."""

    protocol: ClassVar[Any] = "faraway"
    store: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride] - it is one of the class
    pseudo_dirs: ClassVar[list[str]] = [""]
    answers: ClassVar[threading.Event] = threading.Event()
    broken: ClassVar[bool] = False
    calls: ClassVar[Counter[str]] = Counter()
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(str(path).removeprefix("faraway://"))

    @classmethod
    def reset(cls) -> None:
        cls.store.clear()
        cls.calls.clear()
        cls.answers.set()
        cls.broken = False

    @classmethod
    def put_folder(cls, folder: Path, name: str = "") -> None:
        """Put a soft prompt's folder into the bucket."""
        files = cls()
        for file in folder.iterdir():
            MemoryFileSystem.pipe_file(files, f"/bucket/prompts/{name or folder.name}/{file.name}", file.read_bytes())

    @classmethod
    def remove(cls, path: str) -> None:
        for file in [file for file in cls.store if file.startswith(f"/bucket/prompts/{path}")]:
            del cls.store[file]

    def _call(self, what: str) -> None:
        type(self).calls[what] += 1
        self.answers.wait(60)
        if self.broken:
            raise OSError("503 Slow Down")

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._call("find")
        return super().find(path, *args, **kwargs)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._call(f"cat {path.rpartition('/')[2]}")
        return super().cat_file(path, *args, **kwargs)

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._call(f"open {path.rpartition('/')[2]}")
        return super()._open(path, *args, **kwargs)


fsspec.register_implementation("faraway", FarAway, clobber=True)
