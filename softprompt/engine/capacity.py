"""Sizes of the Transformers engine's batch and key/value cache, fitted to the free memory."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch
from transformers import ContinuousBatchingConfig

from softprompt.engine.cache_eviction import SCHEDULER_NAME
from softprompt.errors import ConfigError
from softprompt.models.frozen_lm import FrozenLM

# Tokens of a block. Rows share whole blocks, so small ones share more of a short soft prompt (docs/log).
BLOCK_TOKENS, CPU_BLOCK_TOKENS = 16, 4
MEMORY_SHARE = 0.25  # of the free memory, for the cache
ROW_TOKENS = 512  # of a row on a CPU, on average; elsewhere every row may fill the context


@dataclass(frozen=True)
class Capacity:
    """Sizes of batch and cache.

    Attributes:
        rows: jobs in a batch.
        batch_tokens: tokens in a step, of all rows; long texts are read in parts of this size, between which the
            others go on. None: 256 on a CPU, 2,048 elsewhere.
        cache_tokens: tokens whose keys and values are kept, of all rows and of the prefix cache; memory is taken for
            them at once. None: on a CPU 512 a row, but a full context at least; elsewhere a full context a row; and
            no more than fits in a quarter of the free memory.
    """

    rows: int = 64
    batch_tokens: int | None = None
    cache_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} is out of range", where="engine capacity", expected=">= 1", got=value)

    def config(self, lm: FrozenLM) -> ContinuousBatchingConfig:
        """For Transformers' manager."""
        on_cpu = lm.device.type == "cpu"
        batch_tokens, page = (
            self.batch_tokens or (256 if on_cpu else 2048),
            CPU_BLOCK_TOKENS if on_cpu else BLOCK_TOKENS,
        )
        tokens = self.cache_tokens or _default_tokens(lm, self.rows)
        return ContinuousBatchingConfig(
            page_size=page,
            num_blocks=max(1, tokens // page),
            max_batch_tokens=max(batch_tokens, self.rows),
            max_requests_per_batch=self.rows,
            max_blocks_per_request=0,
            use_async_batching=False,
            use_cuda_graph=False,
            scheduler_type=SCHEDULER_NAME,
        )


def cache_shape(lm: FrozenLM) -> tuple[int, int]:
    """Heads and size of the keys and values in the cache: the largest of all layers, which smaller ones fill partly."""
    shapes = [shape for shape in lm.geometry.layers if shape is not None]
    return max(shape.kv_heads for shape in shapes), max(max(shape.key_dim, shape.value_dim) for shape in shapes)


def _default_tokens(lm: FrozenLM, rows: int) -> int:
    context, on_cpu = lm.geometry.max_positions, lm.device.type == "cpu"
    free = torch.cuda.mem_get_info(lm.device)[0] if lm.device.type == "cuda" else psutil.virtual_memory().available
    wanted = max(context, rows * ROW_TOKENS) if on_cpu else rows * context
    return min(int(free * MEMORY_SHARE) // lm.geometry.kv_bytes_per_token(lm.dtype.itemsize), wanted)
