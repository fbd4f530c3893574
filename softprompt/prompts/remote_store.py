"""Soft prompts in a store far away: s3://bucket/prompts and whatever else fsspec knows.

The listing is read in the background, at most every half minute, and kept. Files are fetched into a cache on this disk
(`folder_cache`) under the digest of their card, which holds the digest of the tensors, and are checked before they are
used. What is here is served whatever the store does; only who names what is not here waits, and not for long.
"""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from softprompt.errors import SoftpromptError, StoreError, UnreachableError
from softprompt.files import MAX_TENSOR_BYTES
from softprompt.models.geometry import Geometry
from softprompt.models.sources import cache_home
from softprompt.prompts import store
from softprompt.prompts.card import Card
from softprompt.prompts.folder_cache import FolderCache
from softprompt.prompts.prompt_store import CardFacts, StoredPrompt, listed_facts
from softprompt.prompts.remote_files import RemoteFile, RemoteFiles, Waited, digest_of, shown_url
from softprompt.prompts.remote_index import RemotePrompt, read_index, write_index
from softprompt.prompts.router import ROUTER_TENSORS, load_router

MAX_LISTED = 20_000  # soft prompts of one store
MAX_CARD_BYTES = 2**20
_CARDS_AT_ONCE = 64
_CALLS_AT_ONCE = 16  # to a store, of those that fetch; a store that hangs keeps them
_DOWNLOAD_S = 60.0  # a block of a file takes that long at most
_HANGS_S = 300.0  # a reading of the listing from which nothing has arrived for so long is given up
_TENSORS = {store.CARD: store.TENSORS, store.ROUTER: ROUTER_TENSORS}  # the second file of a soft prompt and of a router
_T = TypeVar("_T")


class RemoteStore:
    """A `PromptStore` below a URL.

    Args:
        url: a folder whose folders are soft prompts.
        fresh_s: seconds after which a listing that is used is read again.
        again_s: seconds for which a new listing is believed about a name that it does not have.
        patience_s: how long who names what is not here waits for a store from which nothing arrives.
    """

    def __init__(self, url: str, *, fresh_s: float = 30.0, again_s: float = 1.0, patience_s: float = 10.0) -> None:
        self.url, self.shown = url.rstrip("/"), shown_url(url)
        self._fresh_s, self._again_s = fresh_s, again_s
        self._patience_s = patience_s
        self._cache = prompts_cache()
        self._index = cache_home() / "remote" / "listings" / f"{digest_of(self.url.encode())[:32]}.json"
        self._prompts: Mapping[str, RemotePrompt] = read_index(self._index)
        self._serial, self._read_at = 0, -float("inf")
        self._reading: Waited[None] | None = None
        self._calls = threading.BoundedSemaphore(_CALLS_AT_ONCE)
        self._lock = threading.Lock()

    def version(self) -> int | None:
        """The number of the listing; a stale one is read again in the background."""
        if time.monotonic() - self._read_at > self._fresh_s:
            self._read_listing()
        return self._serial

    def listing(self) -> Mapping[str, StoredPrompt]:
        """What is known to be there."""
        return {
            name: replace(prompt.stored, stamp=prompt.read or prompt.stored.stamp)
            for name, prompt in self._prompts.items()
            if store.PROMPT_NAME.fullmatch(name)
        }

    def listed(self, name: str) -> StoredPrompt | None:
        """The entry of this name."""
        self.version()
        prompt = self._prompts.get(name) if store.PROMPT_NAME.fullmatch(name) else None
        return None if prompt is None else prompt.stored

    def facts(self, name: str) -> CardFacts | None:
        """Of its card; None if that was not read yet. Raises StoreError if it is damaged."""
        prompt = self._prompts.get(name)
        if prompt is not None and prompt.read and prompt.facts is None:
            raise StoreError("its card is damaged", where=f"{self.shown}/{name}")
        return None if prompt is None else prompt.facts

    def here(self, name: str) -> Path | None:
        """Its folder in the cache."""
        prompt = self._prompts.get(name)
        return self._cache.get(prompt.digest) if prompt is not None and prompt.digest else None

    def is_current(self, name: str) -> bool:
        """Whether it was fetched since the listing saw it change, and is still in the cache."""
        prompt = self._prompts.get(name)
        return prompt is not None and prompt.fetched == prompt.stored.stamp and self.here(name) is not None

    def fetch(self, name: str) -> None:
        """Bring the newest version here. Raises StoreError if there is none or the store fails."""
        known = self._prompts.get(name)
        where = f"{self.shown}/{name}"
        file, content = self._call(partial(_first_file, self.url, name)).result(self._patience_s, where)
        digest = self._call(partial(self._download, name, file, content)).result(_DOWNLOAD_S, where)
        stored = known.stored if known is not None else StoredPrompt(file, digest, int(time.time()))
        facts = _facts(content, {}) if file == store.CARD else None
        self._remember(name, RemotePrompt(stored, stored.stamp, facts, digest, stored.stamp))

    def look_again(self) -> None:
        """Read the listing anew if that was not just done. Raises StoreError if the store fails."""
        if time.monotonic() - self._read_at >= self._again_s:
            self._read_listing().result(self._patience_s, self.shown)

    def _call(self, work: Callable[[Callable[[], None]], _T]) -> Waited[_T]:
        """A call in a thread of its own. Raises StoreError if too many of them hang."""
        if not self._calls.acquire(blocking=False):
            raise UnreachableError("the store does not answer", where=self.shown, hint="try again later")

        def released(progress: Callable[[], None]) -> _T:
            try:
                return work(progress)
            finally:
                self._calls.release()

        return Waited(released)

    def _read_listing(self) -> Waited[None]:
        """The only reading of the listing, started if there is none and the last one did not begin just now."""
        with self._lock:
            now = self._reading
            over = now is None or now.silent_s > _HANGS_S or (now.done and now.age_s >= self._again_s)
            if now is None or over:
                now = self._reading = Waited[None](self._read)
            return now

    def _read(self, progress: Callable[[], None]) -> None:
        """Read the listing, then the cards that changed."""
        began = time.monotonic()
        files, before = RemoteFiles(self.url), self._prompts
        found = _listed_prompts(files.find())
        progress()
        after = {name: replace(before.get(name, RemotePrompt(stored)), stored=stored) for name, stored in found.items()}
        self._publish(after, began)
        changed = [name for name, prompt in after.items() if prompt.read != prompt.stored.stamp]
        bases = {prompt.facts.base: prompt.facts.base for prompt in after.values() if prompt.facts is not None}
        for i in range(0, len(changed), _CARDS_AT_ONCE):
            names = changed[i : i + _CARDS_AT_ONCE]
            cards = files.read_all([f"{name}/{store.CARD}" for name in names if after[name].stored.file == store.CARD])
            progress()
            for name in names:
                content, stored = cards.get(f"{name}/{store.CARD}"), after[name].stored
                if stored.file == store.ROUTER:
                    after[name] = replace(after[name], read=stored.stamp)
                elif content is not None:
                    after[name] = replace(after[name], read=stored.stamp, facts=_facts(content, bases))
        self._publish(after, began)
        if changed or after.keys() != before.keys():
            write_index(self._index, self._prompts)

    def _publish(self, prompts: Mapping[str, RemotePrompt], began: float) -> None:
        """Make a listing the known one, unless a newer one is known. What was fetched meanwhile stays known."""
        with self._lock:
            if began < self._read_at:
                return
            fetched = {name: self._prompts.get(name, prompt) for name, prompt in prompts.items()}
            merged = {
                name: replace(prompt, digest=fetched[name].digest, fetched=fetched[name].fetched)
                for name, prompt in prompts.items()
            }
            self._serial += merged != self._prompts
            self._prompts, self._read_at = merged, began

    def _download(self, name: str, file: str, content: bytes, progress: Callable[[], None]) -> str:
        """The digest of a soft prompt's or router's files, which are in the cache then."""
        files = RemoteFiles(self.url)
        digest = digest_of(content)
        if file == store.ROUTER:  # its file does not have the digest of its weights
            weights = files.read(f"{name}/{ROUTER_TENSORS}", 64 * MAX_CARD_BYTES)
            digest = digest_of(content + (weights or b""))
        if self._cache.get(digest) is None:
            self._cache.put(digest, partial(_fill, files, name, file, content, progress))
        return digest

    def _remember(self, name: str, fetched: RemotePrompt) -> None:
        with self._lock:
            self._serial += self._prompts.get(name) != fetched
            self._prompts = {**self._prompts, name: fetched}
        write_index(self._index, self._prompts)


def prompts_cache() -> FolderCache:
    """The cache of fetched soft prompts, of $SOFTPROMPT_PROMPTS_CACHE_GIB (20) at most."""
    text = os.environ.get("SOFTPROMPT_PROMPTS_CACHE_GIB") or "20"
    try:
        limit = int(float(text) * 2**30)
    except (ValueError, OverflowError) as error:
        raise StoreError("not a size in GiB", where="$SOFTPROMPT_PROMPTS_CACHE_GIB", got=text) from error
    return FolderCache(cache_home() / "remote" / "prompts", limit)


def find_at_url(url: str) -> Path:
    """The folder of a soft prompt far away in the cache, fetched if it changed.

    If the store fails a copy of an earlier time is used. Raises StoreError if there is none.
    """
    parent, _, name = url.rstrip("/").rpartition("/")
    remote = RemoteStore(parent)
    try:
        remote.fetch(name)
    except UnreachableError as error:
        if remote.here(name) is None:
            raise
        warnings.warn(f"{shown_url(url)}: {error.what}; the copy on this machine is used", stacklevel=3)
    folder = remote.here(name)
    assert folder is not None, "fetched and gone"
    return folder


def _first_file(url: str, name: str, progress: Callable[[], None]) -> tuple[str, bytes]:
    """card.json or router.json, and its contents. Raises StoreError if there is neither."""
    files = RemoteFiles(url)
    for file in _TENSORS:
        content = files.read(f"{name}/{file}", MAX_CARD_BYTES)
        progress()
        if content is not None:
            return file, content
    raise StoreError("no such soft prompt", where=f"{files.shown}/{name}", hint=f"its folder would have a {store.CARD}")


def _fill(
    files: RemoteFiles, name: str, file: str, content: bytes, progress: Callable[[], None], scratch: Path
) -> None:
    """Make the folder of a soft prompt or router, and check it: the tensors have the sha256 of the card."""
    (scratch / file).write_bytes(content)
    tensors = _TENSORS[file]
    files.download(f"{name}/{tensors}", scratch / tensors, MAX_TENSOR_BYTES, progress)
    try:
        if file == store.CARD:
            store.load(scratch)
        else:
            load_router(scratch)
    except SoftpromptError as error:
        raise StoreError(error.what, where=f"{files.shown}/{name}", expected=error.expected, got=error.got) from error


def _listed_prompts(found: Mapping[str, RemoteFile]) -> dict[str, StoredPrompt]:
    """Soft prompts and routers among the files of a store: folders with both of their files."""
    complete = dict[str, StoredPrompt]()
    for path, file in found.items():
        name, _, first = path.partition("/")
        tensors = found.get(f"{name}/{_TENSORS[first]}") if first in _TENSORS and file.size <= MAX_CARD_BYTES else None
        if tensors is not None and store.PROMPT_NAME.fullmatch(name) and (first == store.CARD or name not in complete):
            complete[name] = StoredPrompt(first, f"{file.stamp}/{tensors.stamp}", file.written)
        if len(complete) == MAX_LISTED:
            break
    return dict(sorted(complete.items()))


def _facts(content: bytes, bases: dict[Geometry, Geometry]) -> CardFacts | None:
    """Of a card's JSON; None if it is damaged. `bases` has the base models of other cards, to hold each once."""
    try:
        card = Card.model_validate(json.loads(content))
    except (ValueError, RecursionError):
        return None
    base = bases.setdefault(card.geometry, card.geometry)
    return listed_facts(card, base)
