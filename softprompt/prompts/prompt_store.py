"""A store of soft prompts, as the server sees it: a local folder, or one far away (`remote_store`).

Methods that say "at once" read memory or this machine's disk. The others may wait for a network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from softprompt.data.template import Template
from softprompt.errors import SoftpromptError
from softprompt.files import remove_folder
from softprompt.models.geometry import Geometry
from softprompt.prompts import store
from softprompt.prompts.card import Card

SETTLE_NS = 2_000_000_000  # a folder that changed more recently may change again within the same timestamp


@dataclass(frozen=True)
class StoredPrompt:
    """A soft prompt or router in a store's listing.

    Attributes:
        file: `store.CARD` of a soft prompt, `store.ROUTER` of a router.
        stamp: another one after every change.
        created: seconds since 1970.
    """

    file: str
    stamp: str
    created: int


@dataclass(frozen=True)
class CardFacts:
    """The fields of a card that a listing shows.

    Attributes:
        fields: of the template's text, in order of first use; a text for several is a JSON object with them.
    """

    form: str
    n_tokens: int
    sha256: str
    base: Geometry
    fields: tuple[str, ...] = ()


class PromptStore(Protocol):
    """Soft prompts and routers by name."""

    def version(self) -> int | None:
        """At once: another number after every change of the listing; None if it may be changing now."""
        ...

    def listing(self) -> Mapping[str, StoredPrompt]:
        """At once: everything that is known to be there, by name."""
        ...

    def listed(self, name: str) -> StoredPrompt | None:
        """At once: the listing's entry of this name; None if there is none."""
        ...

    def facts(self, name: str) -> CardFacts | None:
        """At once: of a listed soft prompt's card; None if it is not known yet. Raises StoreError if it is damaged."""
        ...

    def here(self, name: str) -> Path | None:
        """At once: the folder with its files, of the newest version on this machine; None if there is none."""
        ...

    def is_current(self, name: str) -> bool:
        """At once: whether `here` is the listed version."""
        ...

    def fetch(self, name: str) -> None:
        """Bring the newest version to this machine. Raises StoreError if the store fails."""
        ...

    def look_again(self) -> None:
        """Read the listing anew, unless that was done just now. Raises StoreError if the store fails."""
        ...


class LocalStore:
    """A folder of this machine. Links are not followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def version(self) -> int | None:
        """The folder's time of change."""
        changed = self.folder.stat().st_mtime_ns if self.folder.is_dir() else 0
        return changed if time.time_ns() - changed > SETTLE_NS else None

    def listing(self) -> Mapping[str, StoredPrompt]:
        """All soft prompts and routers of the folder."""
        names = sorted(item.name for item in os.scandir(self.folder)) if self.folder.is_dir() else []
        return {name: entry for name in names if (entry := self.listed(name)) is not None}

    def listed(self, name: str) -> StoredPrompt | None:
        """The soft prompt or router of this name."""
        return listed_folder(self.folder / name) if store.PROMPT_NAME.fullmatch(name) else None

    def facts(self, name: str) -> CardFacts:
        """Of a soft prompt's card."""
        return card_facts(self.folder / name)

    def here(self, name: str) -> Path | None:
        """Its folder."""
        return self.folder / name if self.listed(name) is not None else None

    def is_current(self, name: str) -> bool:
        """Always."""
        return True

    def fetch(self, name: str) -> None:
        """Nothing to do."""

    def look_again(self) -> None:
        """Nothing to do."""

    def remove(self, name: str) -> bool:
        """Delete a soft prompt or router with its files; False if there is none. Raises StoreError."""
        if self.listed(name) is None:
            return False
        remove_folder(self.folder / name)
        return True


def listed_folder(folder: Path) -> StoredPrompt | None:
    """The soft prompt or router in a folder of this machine, for a listing; None if there is none, or it is a link."""
    if folder.is_symlink():
        return None
    for file in (store.CARD, store.ROUTER):
        try:
            status = (folder / file).stat()
        except OSError:
            continue
        return StoredPrompt(file, f"{status.st_mtime_ns}-{status.st_ino}", int(status.st_mtime))
    return None


def listed_facts(card: Card, base: Geometry) -> CardFacts:
    """What a listing shows of a card; `base` is its geometry. A damaged template has no fields here."""
    try:
        fields = Template.from_dict(card.template).names
    except SoftpromptError:
        fields = ()
    return CardFacts(card.form, card.n_tokens, card.sha256, base, fields)


def card_facts(folder: Path) -> CardFacts:
    """What a listing shows of the card in a folder. Raises StoreError if it is damaged."""
    card = store.load_card(folder)
    return listed_facts(card, card.geometry)
