"""An LRU cache of soft prompts in the engine, loaded on first use; prompts in use are never evicted.

A replaced or unloaded prompt stays in the engine until the requests that hold it have ended; new requests see the
change. Each loaded version has an engine name of its own. All methods are called from one event loop.

The cache has a fixed number of slots. A slot is taken from before a prompt is loaded until after the engine has
unloaded it, so the engine never holds more prompts than there are slots. A load waits while every slot is in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from softprompt.engine.base import Engine
from softprompt.errors import SoftpromptError, WrongBaseError
from softprompt.server.error_responses import ApiError, unknown_prompt
from softprompt.server.prompt_reader import SoftPromptReader

_T = TypeVar("_T")


@dataclass(eq=False)
class CachedPrompt:
    """One version of a soft prompt in the engine.

    Attributes:
        key: its name in the engine.
        reader: its template and token ids.
        users: number of requests that hold it.
        retired: to be unloaded with its last user.
    """

    name: str
    key: str
    reader: SoftPromptReader
    users: int = 0
    retired: bool = False


class PromptCache:
    """At most `places` loaded soft prompts.

    Args:
        read: reads a soft prompt from disk, off the event loop; raises SoftpromptError, or ApiError for an unknown one.
        fetch: brings a soft prompt's files to this disk before it takes a slot, so that a store far away that hangs
            keeps none; raises as `read` does. None: they are here.
        pinned: names of prompts that are never evicted.
        places: number of slots.

    Attributes:
        hits, misses, evictions: requests whose prompt was loaded, requests that waited for a load, prompts evicted.
    """

    def __init__(
        self,
        engine: Engine,
        read: Callable[[str], Awaitable[SoftPromptReader]],
        pinned: frozenset[str],
        places: int,
        fetch: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._engine, self._read = engine, read
        self._fetch = fetch
        self.pinned, self._places = pinned, places
        self._current: OrderedDict[str, CachedPrompt] = OrderedDict()  # least recently used first
        self._retired: set[CachedPrompt] = set()
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._wanted = Counter[str]()  # requests waiting for a name, which is not evicted before they hold it
        self._closed: set[str] = set()
        self._taken = 0  # slots: of prompts loaded, being loaded and being unloaded
        self._freed = asyncio.Event()
        self._serial = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.hits, self.misses = 0, 0
        self.evictions = 0

    @contextlib.asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[CachedPrompt]:
        """Hold a soft prompt, loading it if necessary. Raises ApiError if it is unknown, unloaded or unusable."""
        held = await self._obtain(name)
        try:
            yield held
        finally:
            held.users -= 1
            if held.retired:
                self._retire(held)
            self._freed.set()

    async def load(self, name: str) -> None:
        """Read a soft prompt from disk now, even if it is loaded or was unloaded. Raises ApiError."""
        if name in self._loads:  # that load may have read older files
            with contextlib.suppress(Exception):
                await asyncio.shield(self._loads[name])
        self.reopen(name)
        await asyncio.shield(self._loading(name))

    def reopen(self, name: str) -> None:
        """Undo `unload`; the prompt is loaded on its next use."""
        self._closed.discard(name)

    def unload(self, name: str) -> None:
        """Refuse new requests for a prompt until `load`. Requests that hold it finish."""
        self._closed.add(name)
        if (cached := self._current.pop(name, None)) is not None:
            self._retire(cached)

    def users(self, name: str) -> int | None:
        """Number of requests that hold the loaded version; None if it is not loaded."""
        cached = self._current.get(name)
        return None if cached is None else cached.users

    def is_closed(self, name: str) -> bool:
        """Whether `unload` was called for it."""
        return name in self._closed

    def __len__(self) -> int:
        return len(self._current)

    async def settle(self) -> None:
        """Wait until all loads and unloads have ended."""
        while self._tasks or self._loads:
            await asyncio.gather(*self._tasks, *self._loads.values(), return_exceptions=True)

    def check_integrity(self) -> None:
        """Raises AssertionError if slots, names or user counts are inconsistent."""
        everything = [*self._current.values(), *self._retired]
        assert all(name == loaded.name for name, loaded in self._current.items()), "a name leads to another prompt"
        assert all(loaded.users >= 0 for loaded in everything), "a prompt was released twice"
        assert all(loaded.retired and loaded.users for loaded in self._retired), "a retired prompt has no users"
        assert not any(loaded.retired for loaded in self._current.values()), "a retired prompt is still listed"
        assert not self._closed & self._current.keys(), "an unloaded prompt is still listed"
        assert len(everything) <= self._taken <= self._places, "more slots are taken than there are"
        assert all(count > 0 for count in self._wanted.values()), "a waiting count is not positive"
        if not self._tasks and not self._loads:
            assert self._taken == len(everything), "a slot was not freed"
            assert sorted(self._engine.loaded()) == sorted(loaded.key for loaded in everything), "the engine differs"

    async def _obtain(self, name: str) -> CachedPrompt:
        self._wanted[name] += 1
        missed = False
        try:
            while (cached := self._current.get(name)) is None:
                if name in self._closed:
                    raise unknown_prompt(name)
                missed = True
                await asyncio.shield(self._loading(name))
            cached.users += 1
        finally:
            self._wanted[name] -= 1
            if not self._wanted[name]:
                del self._wanted[name]
            self._freed.set()
        self._current.move_to_end(name)
        self.hits, self.misses = self.hits + (not missed), self.misses + missed
        return cached

    def _loading(self, name: str) -> asyncio.Task[None]:
        """The only load of this name, started if there is none."""
        if name not in self._loads:
            task = asyncio.create_task(self._load(name))
            self._loads[name] = task
            task.add_done_callback(_retrieve_error)
        return self._loads[name]

    async def _load(self, name: str) -> None:
        try:
            if self._fetch is not None:
                await as_api_error(self._fetch(name))
            await self._take_slot(name)
            try:
                loaded = CachedPrompt(name, f"{name}#{next(self._serial)}", await as_api_error(self._read(name)))
                await as_api_error(self._engine.load(loaded.key, loaded.reader.prefix))
            except BaseException:
                self._free_slot()
                raise
        finally:
            del self._loads[name]
        if (old := self._current.pop(name, None)) is not None:
            self._retire(old)
        if name in self._closed:
            self._retire(loaded)
        else:
            self._current[name] = loaded
            self._freed.set()  # it may be evicted, if nobody waits for it any more

    async def _take_slot(self, name: str) -> None:
        """Take a slot for `name`, evicting the least recently used prompt that is idle; wait if there is none."""
        while self._taken >= self._places:
            idle = next((loaded for loaded in self._current.values() if self._can_evict(loaded, name)), None)
            if idle is not None:
                self.evictions += idle.name != name
                del self._current[idle.name]
                await self._drop(idle)
            else:
                self._freed.clear()
                await self._freed.wait()
        self._taken += 1

    def _can_evict(self, loaded: CachedPrompt, name: str) -> bool:
        """Whether a prompt may be evicted for `name`. A pinned one is evicted only for a new version of itself."""
        kept = loaded.name in self.pinned or loaded.name in self._wanted
        return not loaded.users and (not kept or loaded.name == name)

    def _free_slot(self) -> None:
        self._taken -= 1
        self._freed.set()

    def _retire(self, loaded: CachedPrompt) -> None:
        """Unload it, now or with its last user."""
        loaded.retired = True
        if loaded.users:
            self._retired.add(loaded)
            return
        self._retired.discard(loaded)
        task = asyncio.create_task(self._drop(loaded))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drop(self, loaded: CachedPrompt) -> None:
        try:
            await self._engine.unload(loaded.key)
        finally:
            self._free_slot()


def _retrieve_error(task: asyncio.Task[None]) -> None:
    """Mark a failed load's error as seen, since all requests that waited for it may have been cancelled."""
    if not task.cancelled():
        task.exception()


async def as_api_error(work: Awaitable[_T]) -> _T:
    """The result of a step of loading. Its errors become an ApiError that a client may see."""
    try:
        return await work
    except ApiError:
        raise
    except WrongBaseError as error:
        raise ApiError(400, "This soft prompt was made for another base model.", "wrong_base_model") from error
    except SoftpromptError as error:
        raise ApiError(400, "This soft prompt cannot be loaded.", "unusable_soft_prompt") from error
