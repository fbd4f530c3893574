"""Two caches for Transformers' models: one that shows a prefix and never changes, one that grows while decoding.

Neither uses Transformers' cache storage; a model only calls `update` and a few questions about length.

Shapes: G bins or rows, K key/value heads, S prefix slots, L new tokens, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

KV = tuple[Tensor, Tensor] | None


class PrefixCache(Cache):
    """Shows each layer its prefix in front of its own keys and values, and stays as it is.

    Running a layer twice gives the same result twice, which gradient checkpointing needs.

    Args:
        past: per layer (keys [G, K, S, D], values [G, K, S, D']) or None.
        slots: S.
        record: keep what each layer saw in `seen`, for harvesting.
    """

    def __init__(self, past: tuple[KV, ...], slots: int, *, record: bool = False) -> None:
        super().__init__(layers=[])
        self.past, self.slots, self.record = past, slots, record
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        past = self.past[layer_idx]
        if past is not None:
            key_states = torch.cat([past[0], key_states], dim=2)
            value_states = torch.cat([past[1], value_states], dim=2)
        if self.record:
            self.seen[layer_idx] = (key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.slots


class GrowingCache(Cache):
    """Keys and values of B rows in buffers of fixed size, filled from the left. Without gradient.

    Args:
        past: per layer (keys [B, K, S, D], values [B, K, S, D']) or None.
        slots: S.
        room: how many tokens will be appended at most.
    """

    def __init__(self, past: tuple[KV, ...], slots: int, room: int) -> None:
        super().__init__(layers=[])
        self.past, self.slots, self.size = past, slots, slots + room
        self.buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self.used: dict[int, int] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if layer_idx not in self.buffers:
            self.buffers[layer_idx] = (
                self._buffer(0, layer_idx, key_states),
                self._buffer(1, layer_idx, value_states),
            )
            self.used[layer_idx] = self.slots
        start = self.used[layer_idx]
        end = self.used[layer_idx] = start + key_states.shape[2]
        keys, values = self.buffers[layer_idx]
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        return keys[:, :, :end], values[:, :, :end]

    def keep(self, index: Tensor) -> None:
        """Drop all rows but those in `index`."""
        self.buffers = {i: (keys[index], values[index]) for i, (keys, values) in self.buffers.items()}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.used.get(layer_idx, self.slots)

    def _buffer(self, part: int, layer_idx: int, states: Tensor) -> Tensor:
        rows, heads, _, size = states.shape
        buffer = states.new_zeros(rows, heads, self.size, size)
        past = self.past[layer_idx]
        if past is not None:
            buffer[:, :, : self.slots] = past[part]
        return buffer
