"""Catalogue of the soft prompts that can be served: pinned ones, and those in the folder of soft prompts.

Only this module turns a requested name into a path. It describes files on disk; loaded prompts are the concern of
`server.prompt_cache`. Methods read files, so call them in a worker thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from softprompt.errors import StoreError, WrongBaseError
from softprompt.models.geometry import Geometry
from softprompt.prompts import router, store
from softprompt.prompts.card import Card

OTHER_BASE = "it was made for another base model"
SETTLE_NS = 2_000_000_000  # a folder that changed more recently may change again within the same timestamp


@dataclass(frozen=True)
class CatalogueEntry:
    """A soft prompt or router as listed, without loading it.

    Attributes:
        created: seconds since 1970.
        form: "embedding", "kv", or "router", which chooses one of several soft prompts for each text.
        fault: why it cannot be served, judged by its card; "" if it can.
    """

    name: str
    created: int
    form: str = ""
    n_tokens: int = 0
    sha256: str = ""
    fault: str = ""


class Catalogue:
    """Names, paths and cards of soft prompts.

    Args:
        geometry: geometry of the base model; soft prompts for another one are listed with a fault.
        folder: the folder of soft prompts; None serves the pinned ones only.
        pinned: paths of soft prompts by name; they take precedence over the folder's.
    """

    def __init__(self, geometry: Geometry, folder: Path | None, pinned: Mapping[str, Path]) -> None:
        self._geometry, self._folder = geometry, folder
        self._pinned = dict(pinned)
        self._cards: dict[str, tuple[tuple[int, int], CatalogueEntry]] = {}
        self._listed: tuple[int, tuple[CatalogueEntry, ...]] | None = None
        self._lock = threading.Lock()

    def path(self, name: str) -> Path | None:
        """The folder of a soft prompt of this name; None if there is none. Links are not followed."""
        return self._pinned.get(name) or self._inside(name, store.CARD)

    def router(self, name: str) -> Path | None:
        """The folder of a router of this name; None if there is none, or if the name is a soft prompt."""
        return None if self.path(name) else self._inside(name, store.ROUTER)

    def knows(self, name: str) -> bool:
        """Whether there is a soft prompt or a router of this name."""
        return self.path(name) is not None or self.router(name) is not None

    def _inside(self, name: str, file: str) -> Path | None:
        if self._folder is None or not store.PROMPT_NAME.fullmatch(name):
            return None
        path = self._folder / name
        return path if not path.is_symlink() and (path / file).is_file() else None

    def entries(self) -> tuple[CatalogueEntry, ...]:
        """All entries, sorted by name. A changed folder is read again, but only the cards that changed in it."""
        with self._lock:
            changed = self._folder.stat().st_mtime_ns if self._folder is not None and self._folder.is_dir() else 0
            if self._listed is None or self._listed[0] != changed:
                entries = tuple(self._scan())
                settled = time.time_ns() - changed > SETTLE_NS
                self._listed = (changed if settled else -1, entries)
            return self._listed[1]

    def _scan(self) -> Iterator[CatalogueEntry]:
        names = set(self._pinned)
        if self._folder is not None and self._folder.is_dir():
            names |= {item.name for item in os.scandir(self._folder) if store.PROMPT_NAME.fullmatch(item.name)}
        before, self._cards = self._cards, {}
        for name in sorted(names):
            if (path := self.path(name)) is not None:
                read, file = self._read, path / store.CARD
            elif (path := self.router(name)) is not None:
                read, file = self._read_router, path / store.ROUTER
            else:
                continue
            try:
                status = file.stat()
            except OSError:
                continue
            stamp = (status.st_mtime_ns, status.st_ino)
            known = before.get(name)
            entry = known[1] if known and known[0] == stamp else read(name, path, int(status.st_mtime))
            self._cards[name] = (stamp, entry)
            yield entry

    def _read(self, name: str, path: Path, created: int) -> CatalogueEntry:
        try:
            card: Card = store.load_card(path)
        except StoreError:
            return CatalogueEntry(name, created, fault="its card is damaged")
        fault = OTHER_BASE if self._geometry.differs(card.geometry) else ""
        return CatalogueEntry(name, created, card.form, card.n_tokens, card.sha256, fault)

    def _read_router(self, name: str, path: Path, created: int) -> CatalogueEntry:
        try:
            router.load_router(path, self._geometry)
        except WrongBaseError:
            return CatalogueEntry(name, created, "router", fault=OTHER_BASE)
        except StoreError:
            return CatalogueEntry(name, created, "router", fault="its files are damaged")
        return CatalogueEntry(name, created, "router")
