"""Integrity checks of the paged cache: every block is in one place, with the right reference count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from transformers.generation.continuous_batching.cache_allocators import CacheAllocator
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchProcessor

from softprompt.engine.transformers_compat import free_blocks


def check_blocks(processor: ContinuousBatchProcessor, keys: Collection[str]) -> None:
    """Raises AssertionError unless the blocks are those of the rows `keys`, cached or free."""
    scheduler, cache = processor.scheduler, processor.cache
    known = {*scheduler.active_requests, *scheduler.waiting_requests}
    assert known == set(keys), f"rows {sorted(known ^ set(keys))} are in one book only"
    assert sorted(scheduler.waiting_requests) == sorted(scheduler.waiting_requests_order)
    taken: Counter[int] = Counter(cache.pool.free_sectors)
    for allocator in cache.cache_allocators.values():
        strangers = set(allocator.block_table) - set(scheduler.active_requests)
        assert not strangers, f"rows {sorted(strangers)} hold blocks and do not run"
        blocks = _blocks(allocator)
        taken += Counter({block // allocator.blocks_per_sector for block in blocks})
    reserved = cache.pool.num_reserved_sectors
    assert taken == Counter(range(reserved, cache.num_sectors + reserved)), "sectors are lost or given twice"


def _blocks(allocator: CacheAllocator) -> set[int]:
    """All blocks that an allocator has; every sector of it is whole."""
    ledger, pool = allocator.ledger, allocator.pool
    used = Counter(block for table in allocator.block_table.values() for block in table)
    assert all(len(table) == len(set(table)) for table in allocator.block_table.values()), "a row holds a block twice"
    assert ledger.shared_ref_counts == {block: n for block, n in used.items() if n > 1}, "wrong reference counts"
    assert ledger.hash_to_block == {value: block for block, value in ledger.block_to_hash.items()}, "hashes differ"
    assert set(ledger.cached_blocks) <= set(ledger.block_to_hash), "a cached block cannot be found"
    free = free_blocks(allocator)
    assert len(free) == pool.count_free_blocks(allocator.index)
    everything = [*used, *ledger.cached_blocks, *free]
    assert len(everything) == len(set(everything)), "a block is in two places"
    assert set(ledger.block_to_hash) <= {*used, *ledger.cached_blocks}, "a free block has a hash"
    assert len(everything) % allocator.blocks_per_sector == 0, "a block is lost"
    return set(everything)
