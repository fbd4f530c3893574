"""LRU eviction of cached blocks, no more than are needed.

Transformers' scheduler drops every cached block as soon as the cache is 85 % full, and with them the keys and values of
all soft prompts that no row uses at that moment.
"""

from __future__ import annotations

from itertools import islice
from math import ceil
from typing import final

from transformers.generation.continuous_batching.cache_allocators import CacheAllocator

from softprompt.engine.transformers_compat import OpenScheduler, register_scheduler

SCHEDULER_NAME = "softprompt_fifo"  # of the scheduler


@final
class LruScheduler(OpenScheduler):
    """First in, first out, as Transformers' own; see above for what differs."""

    def keep_safety_margin(self) -> bool:
        cache = self.cache
        cache.pool.try_to_free_sectors()
        for allocator in cache.cache_allocators.values():
            wanted = self.safety_margin * cache.num_sectors * cache.bytes_per_sector
            missing = wanted - cache.compute_free_capacity(relative=False)
            if missing > 0:
                _evict(allocator, ceil(missing / allocator.bytes_per_block))
        return super().keep_safety_margin()


def register_lru_scheduler() -> None:
    """Make the scheduler known to Transformers; called when an engine is made."""
    register_scheduler(SCHEDULER_NAME, LruScheduler)


def _evict(allocator: CacheAllocator, count: int) -> None:
    """Free up to `count` cached blocks, which are in the order of their last release."""
    ledger = allocator.ledger
    blocks = list(islice(ledger.cached_blocks, count))
    for block in blocks:
        del ledger.cached_blocks[block]
        del ledger.hash_to_block[ledger.block_to_hash.pop(block)]
    allocator.pool.free_blocks(allocator.index, blocks)
