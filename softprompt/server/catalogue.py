"""Catalogue of the soft prompts that can be served: pinned ones, and those of a store (a folder, or one far away).

Only this module turns a requested name into a path. It describes stored prompts; loaded ones are the concern of
`server.prompt_cache`. Methods read files, so call them in a worker thread. Only `fetch` and `look_again` may wait for a
network, and only for a store that the operator named.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from softprompt.errors import StoreError, WrongBaseError
from softprompt.models.geometry import Geometry
from softprompt.prompts import router, store
from softprompt.prompts.prompt_store import CardFacts, LocalStore, PromptStore, StoredPrompt, card_facts, listed_folder

OTHER_BASE = "it was made for another base model"


@dataclass(frozen=True)
class CatalogueEntry:
    """A soft prompt or router as listed, without loading it.

    Attributes:
        created: seconds since 1970.
        form: "embedding", "kv", or "router", which chooses one of several soft prompts for each text.
        fault: why it cannot be served, judged by its card; "" if it can.
        fields: of its template's text.
    """

    name: str
    created: int
    form: str = ""
    n_tokens: int = 0
    sha256: str = ""
    fault: str = ""
    fields: tuple[str, ...] = ()


class Catalogue:
    """Names, paths and cards of soft prompts.

    Args:
        geometry: geometry of the base model; soft prompts for another one are listed with a fault.
        prompts: the store of soft prompts, or a folder of this machine; None serves the pinned ones only.
        pinned: paths of soft prompts by name; they take precedence over the store's.
        urls: of pinned ones that lie far away, by name; their paths are local copies.
    """

    def __init__(
        self,
        geometry: Geometry,
        prompts: PromptStore | Path | None,
        pinned: Mapping[str, Path],
        urls: Mapping[str, str] | None = None,
    ) -> None:
        self._geometry = geometry
        self._store: PromptStore | None = LocalStore(prompts) if isinstance(prompts, Path) else prompts
        self._pinned, self._urls = dict(pinned), dict(urls or {})
        self._known: dict[str, tuple[object, CatalogueEntry]] = {}
        self._listed: tuple[int | None, tuple[CatalogueEntry, ...]] | None = None
        self._lock = threading.Lock()

    def path(self, name: str) -> Path | None:
        """The folder of a soft prompt of this name on this machine; None if there is none."""
        return self._pinned.get(name) or self._here(name, store.CARD)

    def router(self, name: str) -> Path | None:
        """The folder of a router of this name on this machine; None if there is none, or the name is a soft prompt."""
        return None if name in self._pinned else self._here(name, store.ROUTER)

    def is_router(self, name: str) -> bool:
        """Whether the name is that of a router, wherever its files are."""
        return self._file(name) == store.ROUTER

    def knows(self, name: str) -> bool:
        """Whether there is a soft prompt or a router of this name."""
        return name in self._pinned or self._file(name) is not None

    def is_current(self, name: str) -> bool:
        """Whether the files on this machine are the listed version of it; if not, `fetch` brings them."""
        if name in self._pinned:
            return name not in self._urls or self._pinned[name].is_dir()
        return self._store is None or self._file(name) is None or self._store.is_current(name)

    def fetch(self, name: str) -> None:
        """Bring the newest version to this machine; may wait for a network. Raises StoreError if the store fails."""
        if name in self._urls:
            store.forget_found(self._urls[name])
            self._pinned[name] = store.find(self._urls[name])
        elif self._store is not None and store.PROMPT_NAME.fullmatch(name) and name not in self._pinned:
            self._store.fetch(name)

    def remove(self, name: str) -> bool:
        """Delete a soft prompt or router with its files; False if there is none of this name.

        Raises StoreError for one whose files are not the server's to delete, or if the disk refuses.
        """
        if name in self._pinned:
            raise StoreError("it was named by --prompt, so the server does not delete its files", where=name)
        if self._store is not None and not isinstance(self._store, LocalStore):
            raise StoreError("it lies in a store far away, from which the server only reads", where=name)
        with self._lock:
            self._listed = None
        return self._store is not None and self._store.remove(name)

    def look_again(self) -> None:
        """Look for new soft prompts; may wait for a network. Raises StoreError if the store fails."""
        if self._store is not None:
            self._store.look_again()

    def _file(self, name: str) -> str | None:
        stored = None if self._store is None or name in self._pinned else self._store.listed(name)
        return None if stored is None else stored.file

    def _here(self, name: str, file: str) -> Path | None:
        return self._store.here(name) if self._store is not None and self._file(name) == file else None

    def entries(self) -> tuple[CatalogueEntry, ...]:
        """All entries, sorted by name. A changed store is listed again, but only the cards that changed are read."""
        with self._lock:
            version = self._store.version() if self._store is not None else 0
            if self._listed is None or self._listed[0] is None or self._listed[0] != version:
                self._listed = (version, tuple(self._scan()))
            return self._listed[1]

    def _scan(self) -> Iterator[CatalogueEntry]:
        pinned = {name: entry for name, path in self._pinned.items() if (entry := listed_folder(path)) is not None}
        listing = {**(self._store.listing() if self._store is not None else {}), **pinned}
        before, self._known = self._known, {}
        for name, stored in sorted(listing.items()):
            known = before.get(name)
            entry = known[1] if known is not None and known[0] == stored else self._read(name, stored)
            if entry is not None:
                self._known[name] = (stored, entry)
                yield entry

    def _read(self, name: str, stored: StoredPrompt) -> CatalogueEntry | None:
        """The entry of a listed prompt; None while a store far away has not read its card."""
        if stored.file == store.ROUTER:
            return self._read_router(name, stored.created)
        try:
            facts = self._facts(name)
        except StoreError:
            return CatalogueEntry(name, stored.created, fault="its card is damaged")
        if facts is None:
            return None
        fault = OTHER_BASE if self._geometry.differs(facts.base) else ""
        about = (facts.form, facts.n_tokens, facts.sha256)
        return CatalogueEntry(name, stored.created, *about, fault, facts.fields)

    def _facts(self, name: str) -> CardFacts | None:
        if name in self._pinned:
            return card_facts(self._pinned[name])
        return None if self._store is None else self._store.facts(name)

    def _read_router(self, name: str, created: int) -> CatalogueEntry:
        path = self.router(name)
        try:
            if path is not None:
                router.load_router(path, self._geometry)
        except WrongBaseError:
            return CatalogueEntry(name, created, "router", fault=OTHER_BASE)
        except StoreError:
            return CatalogueEntry(name, created, "router", fault="its files are damaged")
        return CatalogueEntry(name, created, "router")
