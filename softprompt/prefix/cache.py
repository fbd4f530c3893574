"""Caches for Transformers' models: one that shows a prefix and never changes, one that grows while decoding, and their
counterparts for an encoder–decoder.

Neither uses Transformers' cache storage; a model only calls `update` and a few questions about length.

Shapes: G bins or rows, K key/value heads, S prefix slots, L new tokens, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from transformers import Cache, EncoderDecoderCache

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

    def fill(self, layers: dict[int, tuple[Tensor, Tensor]], places: tuple[Tensor, ...], length: int) -> None:
        """Begin with keys [T, K, D] and values [T, K, D'] by layer: token t at `places`, rows [T] and columns [T]."""
        row_T, column_T = places
        for i, own in layers.items():
            buffers = self.buffers[i] = self._new(i, int(row_T.max()) + 1, own)
            for buffer, states_TKD in zip(buffers, own, strict=True):
                buffer[row_T, :, self.slots + column_T] = states_TKD
            self.used[i] = self.slots + length

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if layer_idx not in self.buffers:
            self.buffers[layer_idx] = self._new(layer_idx, len(key_states), (key_states, value_states))
            self.used[layer_idx] = self.slots
        start = self.used[layer_idx]
        end = self.used[layer_idx] = start + key_states.shape[2]
        keys, values = self.buffers[layer_idx]
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        return keys[:, :, :end], values[:, :, :end]

    def keep(self, index: Tensor) -> None:
        """Drop all rows but those in `index`; a row that is named twice is there twice.

        Only rows that change places are copied: buffers hold a long text for every row.
        """
        places = torch.arange(len(index), device=index.device)
        (moved,) = (index != places).nonzero(as_tuple=True)
        for i, (keys, values) in self.buffers.items():
            self.buffers[i] = _rows(keys, index, moved), _rows(values, index, moved)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.used.get(layer_idx, self.slots)

    def _new(self, layer_idx: int, rows: int, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Buffers with room for all that comes behind the prefix, for states like these [·, K, ·, D]."""
        keys, values = (one.new_zeros(rows, one.shape[1], self.size, one.shape[-1]) for one in states)
        past = self.past[layer_idx]
        if past is not None:
            keys[:, :, : self.slots], values[:, :, : self.slots] = past
        return keys, values


def _rows(buffer: Tensor, index: Tensor, moved: Tensor) -> Tensor:
    """The rows `index` of a buffer, of which only those at the places `moved` are elsewhere now."""
    if len(index) > len(buffer):
        return buffer[index]
    buffer[moved] = buffer[index[moved]]
    return buffer[: len(index)]


@final
class DecoderCache(EncoderDecoderCache):
    """What a decoder sees in front: `own` in its self-attention, `cross` in its cross-attention.

    Transformers asks `is_updated` whether the cross-attention's keys and values are known already. Only a `CrossCache`
    knows them; any other computes them in every call, so that a layer may run twice (gradient checkpointing).
    """

    def __init__(self, own: Cache, cross: Cache) -> None:
        super().__init__(own, cross)
        self.is_updated = {} if isinstance(cross, CrossCache) else _Forgetful()


class _Forgetful(dict[int, bool]):
    """Knows of no layer."""

    def __setitem__(self, layer: int, updated: bool) -> None:
        pass


@dataclass
class _Known:
    """Keys [B, K, S + E, D] and values [B, K, S + E, D'] of one layer."""

    keys: Tensor
    values: Tensor


@final
class CrossCache(Cache):
    """The keys and values of B texts' encoder states behind the rows' prefixes: computed once, then read by the model.

    Args:
        past: per layer (keys [B, K, S, D], values [B, K, S, D']) or None.
    """

    def __init__(self, past: tuple[KV, ...]) -> None:
        super().__init__(layers=[])
        self.past = past
        self.layers: Any = []  # Transformers reads `keys` and `values` of each

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        assert layer_idx == len(self.layers), "every layer once, from the first to the last"
        past = self.past[layer_idx]
        if past is not None:
            key_states = torch.cat([past[0], key_states], dim=2)
            value_states = torch.cat([past[1], value_states], dim=2)
        self.layers.append(_Known(key_states, value_states))
        return key_states, value_states

    def keep(self, index: Tensor) -> None:
        """Drop all rows but those in `index`; a row that is named twice is there twice."""
        self.layers = [_Known(known.keys[index], known.values[index]) for known in self.layers]
