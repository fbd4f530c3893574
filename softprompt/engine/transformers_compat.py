"""Every private name of Transformers' continuous batching that the engine relies on, as public methods.

The names are those of Transformers 5.23 to 5.x (the extra `serve` in `pyproject.toml`). They stand apart from
`models.transformers_compat` because older releases, which train and evaluate, have no such manager. A test fails with
the name if a release drops one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature

from transformers import PreTrainedConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import CacheAllocator
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
)
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler


class OpenManager(ContinuousBatchingManager):
    """Transformers' manager. Its thread calls `run_loop`, which calls `run_iteration`, which calls `run_step`."""

    def create_processor(self) -> ContinuousBatchProcessor:
        """The processor with its cache; also kept as `batch_processor`."""
        self.batch_processor = self._create_batch_processor()
        return self.batch_processor

    def start_thread(self) -> None:
        """Run `run_loop` in a daemon thread: the manager's own would keep a process alive that ends without `close`."""
        self._generation_thread = threading.Thread(target=self.run_loop, daemon=True, name="engine")
        self._generation_thread.start()

    def join_thread(self) -> None:
        """Wait for the thread to end."""
        if self._generation_thread is not None:
            self._generation_thread.join()

    def wake(self) -> None:
        """End the loop's waiting for work."""
        self._wake_up_loop.set()

    def run_loop(self) -> None:
        """Run iterations until the manager is stopped."""
        loop: Callable[..., None] = super()._run_generation_loop
        loop(**({"use_inference_mode": False} if "use_inference_mode" in signature(loop).parameters else {}))  # 5.24

    def run_iteration(self, processor: ContinuousBatchProcessor, bootstrapping: bool) -> bool:
        """Schedule a batch and run it; returns whether the loop goes on."""
        return super()._generation_loop_body(processor, bootstrapping)

    def run_step(self) -> None:
        """Run the model on the scheduled batch and choose tokens."""
        super()._generation_step()

    def _generation_loop_body(self, batch_processor: ContinuousBatchProcessor, bootstrapping: bool) -> bool:
        return self.run_iteration(batch_processor, bootstrapping)

    def _generation_step(self) -> None:
        self.run_step()


class OpenScheduler(FIFOScheduler):
    """Transformers' scheduler. It calls `keep_safety_margin` when the cache is nearly full."""

    def keep_safety_margin(self) -> bool:
        """Drop cached blocks until some are free again; returns whether there are."""
        return super()._try_to_meet_safety_margin()

    def _try_to_meet_safety_margin(self) -> bool:
        return self.keep_safety_margin()


@contextmanager
def shaped_config(config: PreTrainedConfig, heads: int, size: int) -> Iterator[None]:
    """The config with the numbers from which the manager takes its cache's heads and their size."""
    text = config.get_text_config(decoder=True)
    wanted: dict[str, object] = {"num_key_value_heads": heads, "head_dim": size}
    wanted |= {"allow_global_per_layer_attribute_access": True}  # of a config whose layers differ
    before = {name: value for name, value in vars(text).items() if name in wanted}
    vars(text).update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            vars(text).pop(name)
        vars(text).update(before)


def register_scheduler(name: str, scheduler: type[FIFOScheduler]) -> None:
    """Make a scheduler known to Transformers under this name."""
    SCHEDULER_MAPPING[name] = scheduler


def synchronous_io(processor: ContinuousBatchProcessor) -> ContinuousBatchingIOs:
    """The inputs and outputs of a batch; `use_async_batching` is off, so there is one set of them."""
    io = processor.inputs_and_outputs
    assert isinstance(io, ContinuousBatchingIOs)
    return io


def limit_prefix_match(cache: PagedAttentionCache, most: Callable[[str], int | None]) -> None:
    """Let requests take no more tokens from the prefix cache than `most` says for their id; None is no limit."""
    search = cache.search_prefix_match

    def limited(request_id: str, prompt_ids: list[int]) -> int:
        limit = most(request_id)
        return search(request_id, prompt_ids if limit is None else prompt_ids[: limit + 1])  # the last never matches

    cache.search_prefix_match = limited


def free_blocks(allocator: CacheAllocator) -> list[int]:
    """The blocks of an allocator that nobody holds."""
    return [block for tree in allocator.pool._free_blocks[allocator.index].trees.values() for block in tree]
