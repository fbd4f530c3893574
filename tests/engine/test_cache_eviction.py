"""What a full cache forgets: what was used longest ago, and no more than it must."""

from __future__ import annotations

import asyncio

from softprompt.engine.capacity import CPU_BLOCK_TOKENS, Capacity
from softprompt.engine.transformers_engine import TransformersEngine
from softprompt.inference.sampling import Sampling
from softprompt.prefix.kv import Prefix
from tests.support.cases import random_prompt, text_ids
from tests.support.engines import generated, ids_of, job, running
from tests.support.tiny import tiny_lm

ROOM = Capacity(rows=4, batch_tokens=128, cache_tokens=320)


async def computed(engine: TransformersEngine, number: int, prompt: str | None, length: int) -> int:
    """Tokens of the job's prefix and text that were not in the cache."""
    before = engine.stats().computed_tokens
    await ids_of(engine, job(str(number), prompt, text_ids(length, number), Sampling(1)))
    return engine.stats().computed_tokens - before


def test_a_prompt_in_use_stays_while_texts_come_and_go() -> None:
    """Twenty texts of 33 tokens, all new, between uses of one prompt of 32: it is computed once."""

    async def run() -> list[int]:
        lm = tiny_lm("llama")
        async with running(lm, ROOM, mixed=False) as engine:
            await engine.load("p", Prefix(random_prompt(lm, "kv", 32, 1)))
            found = []
            for i in range(20):
                await computed(engine, 2 * i, None, 33)
                found.append(await computed(engine, 2 * i + 1, "p", 5))
                engine.check_integrity()
                assert len(_cached(engine)) * CPU_BLOCK_TOKENS <= 0.85 * 320 + 5, "and the text that was read last"
            return found

    assert asyncio.run(run()) == [37] + [5] * 19


def test_what_was_used_longest_ago_goes_first() -> None:
    async def run() -> None:
        lm = tiny_lm("llama")
        async with running(lm, ROOM, mixed=False) as engine:
            for i in range(8):
                await computed(engine, i, None, 33)
            assert len(_cached(engine)) * CPU_BLOCK_TOKENS == 8 * 32 + 2 * CPU_BLOCK_TOKENS, (
                "with two blocks of the probe"
            )
            await computed(engine, 8, None, 33)
            await computed(engine, 9, None, 33)
            assert await computed(engine, 0, None, 33) == 33, "forgotten"
            assert await computed(engine, 7, None, 33) == 1, "found"

    asyncio.run(run())


def test_a_text_that_needs_all_of_it_gets_it() -> None:
    """Cached blocks never stand in the way of a row."""
    lm = tiny_lm("llama")

    async def run() -> tuple[list[int], str]:
        async with running(lm, Capacity(rows=2, batch_tokens=64, cache_tokens=320), mixed=False) as engine:
            for i in range(8):
                await computed(engine, i, None, 33)
            return await ids_of(engine, job("long", None, text_ids(200, 9), Sampling(40), ends=()))

    assert asyncio.run(run()) == generated(lm, Prefix(), text_ids(200, 9), Sampling(40), ())


def _cached(engine: TransformersEngine) -> dict[int, None]:
    assert engine._loop is not None and engine._loop.batch_processor is not None
    (allocator,) = engine._loop.batch_processor.cache.cache_allocators.values()
    return allocator.ledger.cached_blocks
