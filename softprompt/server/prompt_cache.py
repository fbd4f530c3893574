"""Soft prompts in the engine: loaded on first use, the least recently used one gives way, and no one in use ever does.

A soft prompt that is replaced or unloaded goes on for the requests that hold it; new ones see the change. Every version
has a name of its own in the engine. All methods are called from one event loop.
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
        key: its name there.
        users: requests that hold it.
        retired: goes as soon as no one holds it.
    """

    name: str
    key: str
    frame: SoftPromptReader
    users: int = 0
    retired: bool = False


class PromptCache:
    """The loaded soft prompts, at most `places` of them.

    Args:
        read: reads a soft prompt from disk, off the event loop; raises SoftpromptError, ProblemError if there is none.
        pinned: names that never give way.

    Attributes:
        pinned: as given.
        hits, misses, evictions: uses of a loaded one, uses that had to load, and those that gave way.
    """

    def __init__(
        self, engine: Engine, read: Callable[[str], Awaitable[SoftPromptReader]], pinned: frozenset[str], places: int
    ) -> None:
        self._engine, self._read, self.pinned, self._places = engine, read, pinned, places
        self._current: OrderedDict[str, CachedPrompt] = OrderedDict()  # least recently used first
        self._retired: set[CachedPrompt] = set()
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._wanted = Counter[str]()  # requests that wait for a name: it must not give way before they have it
        self._closed: set[str] = set()
        self._taken = 0  # places: loaded, on their way in, on their way out
        self._freed = asyncio.Event()
        self._serial = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.hits, self.misses, self.evictions = 0, 0, 0

    @contextlib.asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[CachedPrompt]:
        """Use a soft prompt; it is loaded if need be. Raises ProblemError if it is unknown, unloaded or unusable."""
        held = await self._obtain(name)
        try:
            yield held
        finally:
            held.users -= 1
            if held.retired:
                self._retire(held)
            self._freed.set()

    async def load(self, name: str) -> None:
        """Read it from disk now, also if it is loaded or was unloaded. Raises ProblemError."""
        if name in self._loads:  # that one may have read older files
            with contextlib.suppress(Exception):
                await asyncio.shield(self._loads[name])
        self.reopen(name)
        await asyncio.shield(self._loading(name))

    def reopen(self, name: str) -> None:
        """Take back `unload`; it is loaded on first use."""
        self._closed.discard(name)

    def unload(self, name: str) -> None:
        """Refuse it from now on, until `load`. Requests that hold it end in peace."""
        self._closed.add(name)
        if (found := self._current.pop(name, None)) is not None:
            self._retire(found)

    def users(self, name: str) -> int | None:
        """Requests that hold the loaded version; None if it is not loaded."""
        found = self._current.get(name)
        return None if found is None else found.users

    def is_closed(self, name: str) -> bool:
        """Whether it was unloaded by hand."""
        return name in self._closed

    def __len__(self) -> int:
        return len(self._current)

    async def settle(self) -> None:
        """Wait for loads and unloads on their way."""
        while self._tasks or self._loads:
            await asyncio.gather(*self._tasks, *self._loads.values(), return_exceptions=True)

    def check_integrity(self) -> None:
        """Raises AssertionError if places, names or users do not add up."""
        everything = [*self._current.values(), *self._retired]
        assert all(name == loaded.name for name, loaded in self._current.items()), "a name leads to another prompt"
        assert all(loaded.users >= 0 for loaded in everything), "someone let go twice"
        assert all(loaded.retired and loaded.users for loaded in self._retired), "a retired one is kept for no one"
        assert not any(loaded.retired for loaded in self._current.values()), "a retired one is still found"
        assert not self._closed & self._current.keys(), "an unloaded one is still found"
        assert len(everything) <= self._taken <= self._places, "more places are taken than there are"
        assert all(count > 0 for count in self._wanted.values()), "someone waits less than once"
        if not self._tasks and not self._loads:
            assert self._taken == len(everything), "a place was not given back"
            assert sorted(self._engine.loaded()) == sorted(loaded.key for loaded in everything), "the engine has others"

    async def _obtain(self, name: str) -> CachedPrompt:
        self._wanted[name] += 1
        missed = False
        try:
            while (found := self._current.get(name)) is None:
                if name in self._closed:
                    raise unknown_prompt(name)
                missed = True
                await asyncio.shield(self._loading(name))
            found.users += 1
        finally:
            self._wanted[name] -= 1
            if not self._wanted[name]:
                del self._wanted[name]
            self._freed.set()
        self._current.move_to_end(name)
        self.hits, self.misses = self.hits + (not missed), self.misses + missed
        return found

    def _loading(self, name: str) -> asyncio.Task[None]:
        """The one load of this name, begun if there is none."""
        if name not in self._loads:
            task = self._loads[name] = asyncio.create_task(self._load(name))
            task.add_done_callback(_retrieve_error)
        return self._loads[name]

    async def _load(self, name: str) -> None:
        try:
            await self._take_place(name)
            try:
                loaded = CachedPrompt(name, f"{name}#{next(self._serial)}", await as_api_error(self._read(name)))
                await as_api_error(self._engine.load(loaded.key, loaded.frame.prefix))
            except BaseException:
                self._give_place()
                raise
        finally:
            del self._loads[name]
        if (old := self._current.pop(name, None)) is not None:
            self._retire(old)
        if name in self._closed:
            self._retire(loaded)
        else:
            self._current[name] = loaded
            self._freed.set()  # perhaps no one waits for it any more

    async def _take_place(self, name: str) -> None:
        """Wait for a place for `name`, and make one as soon as some soft prompt may give way."""
        while self._taken >= self._places:
            idle = next((loaded for loaded in self._current.values() if self._may_go(loaded, name)), None)
            if idle is not None:
                self.evictions += idle.name != name
                del self._current[idle.name]
                await self._drop(idle)
            else:
                self._freed.clear()
                await self._freed.wait()
        self._taken += 1

    def _may_go(self, loaded: CachedPrompt, name: str) -> bool:
        """Whether it may give way to `name`; to a new version of itself also if it is pinned."""
        kept = loaded.name in self.pinned or loaded.name in self._wanted
        return not loaded.users and (not kept or loaded.name == name)

    def _give_place(self) -> None:
        self._taken -= 1
        self._freed.set()

    def _retire(self, loaded: CachedPrompt) -> None:
        """Let it go: now, or with its last user."""
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
            self._give_place()


def _retrieve_error(task: asyncio.Task[None]) -> None:
    """Everyone who waited for a load may have left: its error is not news to the event loop then."""
    if not task.cancelled():
        task.exception()


async def as_api_error(work: Awaitable[_T]) -> _T:
    """The result of a step of loading, or what a client may know of its error."""
    try:
        return await work
    except ApiError:
        raise
    except WrongBaseError as error:
        raise ApiError(400, "This soft prompt was made for another base model.", "wrong_base_model") from error
    except SoftpromptError as error:
        raise ApiError(400, "This soft prompt cannot be loaded.", "unusable_soft_prompt") from error
