"""Folders kept on disk under the digest of their contents, at most so many bytes: the least recently used go first.

Several processes may share a cache, and any of them may die at any time: a folder appears and goes by a rename.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from softprompt.errors import StoreError
from softprompt.files import write_folder

GRACE_S = 60.0  # a folder that was used so recently is not removed: it may be read just now
_STALE_S = 3600.0  # what was being written or removed so long ago was left by a process that died


class FolderCache:
    """Folders by key.

    Args:
        root: the folder that holds them.
        limit: bytes of all of them; exceeded only by what was used within the last minute.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self._root, self._limit = root, limit

    def get(self, key: str) -> Path | None:
        """The folder of this key, which counts as used now; None if there is none."""
        folder = self._root / key
        try:
            os.utime(folder)
        except OSError:
            return None
        return folder

    def put(self, key: str, fill: Callable[[Path], None]) -> Path:
        """The folder of this key, made by `fill` unless another process was faster. Raises StoreError."""
        folder, made = self._root / key, self._root / f".{key}.{uuid.uuid4().hex[:8]}"
        write_folder(made, fill)
        try:
            os.rename(made, folder)
        except OSError as error:  # a folder is never renamed onto another one
            shutil.rmtree(made, ignore_errors=True)
            if not folder.is_dir():
                raise StoreError(f"cannot write: {error.strerror or error}", where=folder) from error
        self.evict()
        return folder

    def evict(self) -> None:
        """Remove the least recently used folders until the rest is small enough."""
        folders = sorted(self._folders(), key=lambda entry: entry[0])
        excess = sum(size for _, size, _ in folders) - self._limit
        for used, size, folder in folders:
            if excess <= 0 or time.time() - used < GRACE_S:
                break
            self._remove(folder)
            excess -= size

    def _folders(self) -> list[tuple[float, int, Path]]:
        """When each was used, its size, and where it is; remains of dead processes are removed."""
        found = list[tuple[float, int, Path]]()
        for item in os.scandir(self._root):
            with contextlib.suppress(OSError):  # another process removes it just now
                used = item.stat().st_mtime
                if item.name.startswith("."):
                    if time.time() - used > _STALE_S:
                        shutil.rmtree(item.path, ignore_errors=True)
                else:
                    found.append((used, sum(file.stat().st_size for file in os.scandir(item.path)), Path(item.path)))
        return found

    def _remove(self, folder: Path) -> None:
        aside = folder.with_name(f".{folder.name}.gone-{os.getpid()}")
        with contextlib.suppress(OSError):
            os.rename(folder, aside)  # nobody finds it half removed
            shutil.rmtree(aside, ignore_errors=True)
