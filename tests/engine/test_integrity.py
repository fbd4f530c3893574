"""The check of a cache's books finds what it is there to find."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from softprompt.engine.integrity import check_blocks
from softprompt.inference.sampling import Sampling
from tests.support.cases import text_ids
from tests.support.engines import job, running, said
from tests.support.tiny import tiny_lm


def lose_a_free_block(cache: Any, allocator: Any) -> None:
    cache.pool.allocate_sector(0)
    cache.pool.get_free_blocks(0, 1)


def free_a_used_block(cache: Any, allocator: Any) -> None:
    cache.pool.free_blocks(0, [next(iter(allocator.block_table.values()))[0]])


def forget_a_reference(cache: Any, allocator: Any) -> None:
    allocator.ledger.shared_ref_counts.clear()


def keep_blocks_of_nobody(cache: Any, allocator: Any) -> None:
    allocator.block_table["nobody"] = []


def forget_a_hash(cache: Any, allocator: Any) -> None:
    allocator.ledger.hash_to_block.popitem()


def lose_a_sector(cache: Any, allocator: Any) -> None:
    cache.pool.free_sectors.pop()


BREAKS: list[tuple[Callable[[Any, Any], None], str]] = [
    (lose_a_free_block, "sectors are lost|a block is lost"),
    (free_a_used_block, "a block is in two places"),
    (forget_a_reference, "wrong reference counts"),
    (keep_blocks_of_nobody, "hold blocks and do not run"),
    (forget_a_hash, "hashes differ"),
    (lose_a_sector, "sectors are lost"),
]


@pytest.mark.parametrize(("break_it", "message"), BREAKS)
def test_broken_books(break_it: Callable[[Any, Any], None], message: str) -> None:
    ids = text_ids(40, 1)

    async def run() -> None:
        async with running(tiny_lm("llama"), mixed=False) as engine:
            await said(engine, job("cached", None, ids))
            first, second = (engine.stream(job(name, None, ids, Sampling(99), ends=())) for name in "ab")
            async with aclosing(first), aclosing(second):  # type: ignore[type-var]
                await anext(first)
                await anext(second)
                assert engine._loop is not None
                with engine._loop.paused() as (processor, rows):
                    assert processor is not None
                    check_blocks(processor, rows)
                    cache = processor.cache
                    (allocator,) = cache.cache_allocators.values()
                    tables = {name: [*table] for name, table in allocator.block_table.items()}
                    ledger, pool = vars(allocator.ledger), cache.pool
                    kept = {name: dict(book) for name, book in ledger.items()}
                    sectors, free = [*pool.free_sectors], pool._free_blocks[0]
                    trees, length = {root: [*leaves] for root, leaves in free.trees.items()}, free._length
                    try:
                        break_it(cache, allocator)
                        with pytest.raises(AssertionError, match=message):
                            check_blocks(processor, rows)
                    finally:
                        allocator.block_table.clear()
                        allocator.block_table.update(tables)
                        ledger.update(kept)
                        pool.free_sectors[:] = sectors
                        free.trees, free._length = trees, length

    asyncio.run(run())
