"""Soft prompts in memory: places, who gives way, versions, single loads; the books add up after everything."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.errors import EngineError, StoreError
from softprompt.server.error_responses import ApiError
from softprompt.server.prompt_cache import PromptCache
from tests.support.server_oracle import OracleEngine
from tests.support.tiny import tiny_lm


class Shelf:
    """A library over frames that are made of nothing but a number; counts what is read."""

    def __init__(self, places: int, pinned: tuple[str, ...] = ()) -> None:
        self.engine, self.reads, self.broken = FakeEngine(), Counter[str](), set[str]()
        self.slow = 0.0
        self.prompt_cache = PromptCache(self.engine, self.read, frozenset(pinned), places)

    async def read(self, name: str) -> Any:
        self.reads[name] += 1
        await asyncio.sleep(self.slow)
        if name in self.broken:
            raise StoreError("torn", where="/secret/path")
        return SimpleNamespace(prefix=name, digest=f"{name}{self.reads[name]}")

    async def used(self, name: str) -> str:
        async with self.prompt_cache.hold(name) as held:
            return held.reader.digest


class FakeEngine(OracleEngine):
    """Remembers what it holds, and takes a moment for everything."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}
        self.full = False

    async def load(self, name: str, prefix: Any) -> None:
        await asyncio.sleep(0)
        if self.full:
            raise EngineError("no room at 0x7f")
        assert name not in self.held
        self.held[name] = prefix

    async def unload(self, name: str) -> None:
        await asyncio.sleep(0)
        del self.held[name]

    def loaded(self) -> tuple[str, ...]:
        return tuple(self.held)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


async def settled(shelf: Shelf) -> list[str]:
    """Names of what the engine holds, once nothing moves."""
    await shelf.prompt_cache.settle()
    shelf.prompt_cache.check_integrity()
    return sorted(key.partition("#")[0] for key in shelf.engine.held)


def test_loaded_on_first_use_and_the_least_recently_used_gives_way() -> None:
    async def work() -> None:
        shelf = Shelf(places=2)
        for name in ("a", "b", "a", "c"):
            await shelf.used(name)
        assert await settled(shelf) == ["a", "c"]
        cache = shelf.prompt_cache
        assert (cache.hits, cache.misses, cache.evictions, len(cache)) == (1, 3, 1, 2)
        assert shelf.reads == {"a": 1, "b": 1, "c": 1}

    run(work)


def test_many_at_once_load_once() -> None:
    async def work() -> None:
        shelf = Shelf(places=2)
        shelf.slow = 0.01
        digests = await asyncio.gather(*(shelf.used(name) for name in "ab" * 20))
        assert set(digests) == {"a1", "b1"}
        assert shelf.reads == {"a": 1, "b": 1}
        assert await settled(shelf) == ["a", "b"]

    run(work)


def test_what_is_in_use_or_pinned_stays() -> None:
    """Who needs a place waits until one is free."""

    async def work() -> None:
        shelf = Shelf(places=2, pinned=("p",))
        await shelf.prompt_cache.load("p")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(shelf.prompt_cache.hold("a"))
            waiting = asyncio.create_task(shelf.used("b"))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            assert await shelf.used("p") == "p1"
        assert await waiting == "b1"
        assert await settled(shelf) == ["b", "p"]

    run(work)


@pytest.mark.parametrize("names", [30, 3])
def test_one_place_for_many(names: int) -> None:
    """Everyone gets a turn."""

    async def work() -> None:
        shelf = Shelf(places=1)
        wanted = [f"n{i % names}" for i in range(60)]
        digests = await asyncio.gather(*map(shelf.used, wanted))
        assert [digest[: len(name)] for digest, name in zip(digests, wanted, strict=True)] == wanted
        assert len(await settled(shelf)) == 1

    run(work)


def test_a_new_version_for_new_requests() -> None:
    """Those that hold the old one keep it, and then it goes."""

    async def work() -> None:
        shelf = Shelf(places=3)
        async with shelf.prompt_cache.hold("a") as old:
            await shelf.prompt_cache.load("a")
            assert await shelf.used("a") == "a2"
            assert (old.reader.digest, len(shelf.engine.held)) == ("a1", 2)
            shelf.prompt_cache.check_integrity()
        assert await settled(shelf) == ["a"]
        assert await shelf.used("a") == "a2"

    run(work)


def test_a_new_version_where_there_is_no_place_beside_the_old_one() -> None:
    """It takes the old one's place as soon as no one holds that, also of one that is pinned."""

    async def work() -> None:
        shelf = Shelf(places=1, pinned=("p",))
        await shelf.prompt_cache.load("p")
        async with shelf.prompt_cache.hold("p"):
            loading = asyncio.create_task(shelf.prompt_cache.load("p"))
            await asyncio.sleep(0.02)
            assert not loading.done()
        await loading
        assert await shelf.used("p") == "p2"
        assert await settled(shelf) == ["p"] and shelf.prompt_cache.evictions == 0

    run(work)


def test_unloaded_is_refused_until_it_is_loaded() -> None:
    async def work() -> None:
        shelf = Shelf(places=2)
        async with shelf.prompt_cache.hold("a"):
            shelf.prompt_cache.unload("a")
            with pytest.raises(ApiError, match="no soft prompt 'a'"):
                await shelf.used("a")
            assert shelf.prompt_cache.users("a") is None and shelf.prompt_cache.is_closed("a")
            assert len(shelf.engine.held) == 1, "the holder goes on"
        assert await settled(shelf) == []
        await shelf.prompt_cache.load("a")
        assert await shelf.used("a") == "a2"
        assert await settled(shelf) == ["a"]

    run(work)


def test_unloaded_while_it_loads() -> None:
    async def work() -> None:
        shelf = Shelf(places=2)
        shelf.slow = 0.02
        waiting = asyncio.create_task(shelf.used("a"))
        await asyncio.sleep(0.01)
        shelf.prompt_cache.unload("a")
        with pytest.raises(ApiError):
            await waiting
        assert await settled(shelf) == []

    run(work)


@pytest.mark.parametrize("fault", ["read", "engine"])
def test_what_cannot_be_loaded_gives_its_place_back(fault: str) -> None:
    """All who wait are told, without a path, and it is tried again next time."""

    async def work() -> None:
        shelf = Shelf(places=1)
        shelf.slow = 0.01
        shelf.broken = {"a"} if fault == "read" else set()
        shelf.engine.full = fault == "engine"
        results = await asyncio.gather(*(shelf.used("a") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(e, ApiError) and e.status == 400 and "/" not in str(e) for e in results)
        assert shelf.reads["a"] == 1
        shelf.broken, shelf.engine.full = set(), False
        assert await settled(shelf) == []
        assert await shelf.used("a") == "a2"

    run(work)


def test_who_leaves_while_it_loads_changes_nothing() -> None:
    async def work() -> None:
        shelf = Shelf(places=1)
        shelf.slow = 0.02
        first, second = asyncio.create_task(shelf.used("a")), asyncio.create_task(shelf.used("a"))
        await asyncio.sleep(0.01)
        first.cancel()
        assert await second == "a1"
        assert await settled(shelf) == ["a"]

    run(work)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_the_books_add_up_whatever_happens(seed: int, places: int) -> None:
    """Uses, leaves, loads, unloads and faults at random; checked after every step."""
    draw = random.Random(seed)

    async def one(shelf: Shelf) -> None:
        name = draw.choice("abcdef")
        action = draw.choices(["use", "load", "unload", "fault"], [8, 1, 1, 1])[0]
        if action == "fault":
            shelf.broken ^= {name}
        elif action == "unload":
            shelf.prompt_cache.unload(name)
        else:
            await {"use": held, "load": lambda shelf, name: shelf.prompt_cache.load(name)}[action](shelf, name)

    async def held(shelf: Shelf, name: str) -> None:
        async with shelf.prompt_cache.hold(name) as found:
            assert found.reader.digest.startswith(name)
            await asyncio.sleep(draw.random() / 1000)
            assert found.key in shelf.engine.held, "it is there as long as it is held"

    async def quietly(work: Awaitable[None]) -> None:
        with suppress(ApiError, TimeoutError):
            await asyncio.wait_for(work, draw.choice([0.0005, 5]))

    async def work() -> None:
        shelf, tasks = Shelf(places), set[asyncio.Task[None]]()
        for _ in range(60):
            tasks.add(asyncio.create_task(quietly(one(shelf))))
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
            shelf.prompt_cache.check_integrity()
        await asyncio.gather(*tasks)
        assert len(await settled(shelf)) <= places

    run(work)


def test_the_oracle_is_an_engine() -> None:
    """As the interface has it; a type checker compares the rest."""
    from softprompt.engine.base import Engine

    engine: Engine = OracleEngine(tiny_lm("llama", bos=True))
    assert engine.loaded() == ()
