"""The soft prompts that may be served: those given by name, and every one in the folder of soft prompts.

The one place where a name becomes a path. Knows what is on disk, not what is loaded. Its methods read files: call them
in a worker thread.
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
SETTLE_NS = 2_000_000_000  # a folder that changed this short ago may change again without a newer time


@dataclass(frozen=True)
class CatalogueEntry:
    """What a list says of a soft prompt without loading it.

    Attributes:
        created: seconds since 1970.
        form: "embedding", "kv", or "router", which chooses one of several soft prompts for each text.
        fault: why it cannot be served; "" if it can, as far as its card tells.
    """

    name: str
    created: int
    form: str = ""
    n_tokens: int = 0
    sha256: str = ""
    fault: str = ""


class Catalogue:
    """Names of soft prompts, where they are, and what their cards say.

    Args:
        geometry: of the base model; a soft prompt for another one is listed with its fault.
        folder: the folder of soft prompts; None for those of `given` alone.
        given: paths of soft prompts by name, which come first.
    """

    def __init__(self, geometry: Geometry, folder: Path | None, given: Mapping[str, Path]) -> None:
        self._geometry, self._folder, self._given = geometry, folder, dict(given)
        self._cards: dict[str, tuple[tuple[int, int], CatalogueEntry]] = {}
        self._listed: tuple[int, tuple[CatalogueEntry, ...]] | None = None
        self._lock = threading.Lock()

    def path(self, name: str) -> Path | None:
        """The folder of a soft prompt of this name; None if there is none. Links are not followed."""
        return self._given.get(name) or self._inside(name, store.CARD)

    def router(self, name: str) -> Path | None:
        """The folder of a router of this name; None if there is none, or a soft prompt."""
        return None if self.path(name) else self._inside(name, store.ROUTER)

    def knows(self, name: str) -> bool:
        """Whether there is a soft prompt or a router of this name."""
        return self.path(name) is not None or self.router(name) is not None

    def _inside(self, name: str, facts: str) -> Path | None:
        if self._folder is None or not store.NAME.fullmatch(name):
            return None
        path = self._folder / name
        return path if not path.is_symlink() and (path / facts).is_file() else None

    def entries(self) -> tuple[CatalogueEntry, ...]:
        """All of them, by name. Reads the folder again when it has changed, and only cards that are new in it."""
        with self._lock:
            changed = self._folder.stat().st_mtime_ns if self._folder is not None and self._folder.is_dir() else 0
            if self._listed is None or self._listed[0] != changed:
                found = tuple(self._scan())
                settled = time.time_ns() - changed > SETTLE_NS
                self._listed = (changed if settled else -1, found)
            return self._listed[1]

    def _scan(self) -> Iterator[CatalogueEntry]:
        names = set(self._given)
        if self._folder is not None and self._folder.is_dir():
            names |= {found.name for found in os.scandir(self._folder) if store.NAME.fullmatch(found.name)}
        before, self._cards = self._cards, {}
        for name in sorted(names):
            if (path := self.path(name)) is not None:
                read, file = self._read, path / store.CARD
            elif (path := self.router(name)) is not None:
                read, file = self._read_router, path / store.ROUTER
            else:
                continue
            try:
                facts = file.stat()
            except OSError:
                continue
            stamp = (facts.st_mtime_ns, facts.st_ino)
            known = before.get(name)
            entry = known[1] if known and known[0] == stamp else read(name, path, int(facts.st_mtime))
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
