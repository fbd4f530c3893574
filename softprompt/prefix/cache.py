"""Caches for Transformers' models: a constant one that holds a prefix, one that grows while decoding, and their
counterparts for an encoder–decoder.

None uses Transformers' cache storage; a model only calls `update` and a few methods about lengths.

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
    """Puts the prefix's keys and values before each layer's own, and never changes.

    Running a layer twice gives the same result twice, which gradient checkpointing needs.

    Args:
        past: per layer (keys [G, K, S, D], values [G, K, S, D']) or None.
        slots: S.
        record: keep all keys and values of each layer in `seen`.
        stands_in: the first S tokens of each layer only hold places: their keys and values are replaced.
    """

    def __init__(self, past: tuple[KV, ...], slots: int, *, record: bool = False, stands_in: bool = False) -> None:
        super().__init__(layers=[])
        self.past = past
        self.slots = slots
        self.record = record
        self.stands_in = stands_in
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        key_states, value_states = _joined(
            self.past[layer_idx], key_states, value_states, self.slots if self.stands_in else 0
        )
        if self.record:
            self.seen[layer_idx] = (key_states, value_states)
        return key_states, value_states

    def keep(self, index: Tensor) -> None:
        """Drop all rows but those in `index`; a row that is named twice appears twice."""
        self.past = tuple(None if kv is None else (kv[0][index], kv[1][index]) for kv in self.past)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.stands_in else self.slots

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of keys of these queries, and the position of the first key."""
        return self.get_seq_length() + query_length, 0


class GrowingCache(Cache):
    """Keys and values of B rows in buffers of fixed size, filled from the left. Without gradient.

    Args:
        past: per layer (keys [B, K, S, D], values [B, K, S, D']) or None.
        slots: S.
        room: the most tokens that will be appended.
    """

    def __init__(self, past: tuple[KV, ...], slots: int, room: int) -> None:
        super().__init__(layers=[])
        self.past = past
        self.slots = slots
        self.size = slots + room
        self.buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self.used: dict[int, int] = {}

    def fill(self, layers: dict[int, tuple[Tensor, Tensor]], places: tuple[Tensor, ...], length: int) -> None:
        """Begin with keys [T, K, D] and values [T, K, D'] by layer: token t at `places`, rows [T] and columns [T]."""
        row_T, column_T = places
        for i, states in layers.items():
            buffers = self._new(i, int(row_T.max()) + 1, states)
            self.buffers[i] = buffers
            for buffer, states_TKD in zip(buffers, states, strict=True):
                buffer[row_T.to(buffer.device), :, (self.slots + column_T).to(buffer.device)] = states_TKD
            self.used[i] = self.slots + length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if layer_idx not in self.buffers:
            self.buffers[layer_idx] = self._new(layer_idx, len(key_states), (key_states, value_states))
            self.used[layer_idx] = self.slots
        start = self.used[layer_idx]
        end = start + key_states.shape[2]
        self.used[layer_idx] = end
        keys, values = self.buffers[layer_idx]
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        return keys[:, :, :end], values[:, :, :end]

    def keep(self, index: Tensor) -> None:
        """Drop all rows but those in `index`; a row that is named twice appears twice.

        Only rows that change places are copied: buffers hold a long text for every row.
        """
        places = torch.arange(len(index), device=index.device)
        (moved,) = (index != places).nonzero(as_tuple=True)
        for i, (keys, values) in self.buffers.items():
            there = index.to(keys.device), moved.to(keys.device)
            self.buffers[i] = _rows(keys, *there), _rows(values, *there)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.used.get(layer_idx, self.slots)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of keys of these queries, and the position of the first key."""
        return self.get_seq_length(layer_idx) + query_length, 0

    def _new(self, layer_idx: int, rows: int, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Buffers with room for everything after the prefix, for states like these [·, K, ·, D]."""
        keys, values = (part.new_zeros(rows, part.shape[1], self.size, part.shape[-1]) for part in states)
        past = self.past[layer_idx]
        if past is not None:
            keys[:, :, : self.slots], values[:, :, : self.slots] = past
        return keys, values


def _joined(past: KV, keys: Tensor, values: Tensor, placeholders: int) -> tuple[Tensor, Tensor]:
    """Keys and values after those of the prefix, and without the first ones, which only hold places."""
    if past is None:
        return keys, values
    before = past[0].to(keys.device), past[1].to(values.device)
    keys = torch.cat([before[0], keys[:, :, placeholders:]], dim=2)
    return keys, torch.cat([before[1], values[:, :, placeholders:]], dim=2)


def _rows(buffer: Tensor, index: Tensor, moved: Tensor) -> Tensor:
    """The rows `index` of a buffer, of which only those at the places `moved` are elsewhere now."""
    if len(index) > len(buffer):
        return buffer[index]
    buffer[moved] = buffer[index[moved]]
    return buffer[: len(index)]


@final
class DecoderCache(EncoderDecoderCache):
    """The caches of a decoder's self-attention and cross-attention.

    Transformers reads in `is_updated` whether the cross-attention's keys and values are stored already. Only a
    `CrossCache` stores them; with any other they are computed in every call, so that a layer may run twice (gradient
    checkpointing).
    """

    def __init__(self, self_attention: Cache, cross: Cache) -> None:
        super().__init__(self_attention, cross)
        self.is_updated = {} if isinstance(cross, CrossCache) else _Forgetful()


class _Forgetful(dict[int, bool]):
    """Stores nothing."""

    def __setitem__(self, layer: int, updated: bool) -> None:
        pass


@dataclass
class _Known:
    """Keys [B, K, S + E, D] and values [B, K, S + E, D'] of one layer."""

    keys: Tensor
    values: Tensor


@final
class CrossCache(Cache):
    """The keys and values of B texts' encoder states after the rows' prefixes: computed once, then read by the model.

    Args:
        past: per layer (keys [B, K, S, D], values [B, K, S, D']) or None.
        placeholders: S if the first S of the encoder's states only hold places, else 0.
    """

    def __init__(self, past: tuple[KV, ...], placeholders: int = 0) -> None:
        super().__init__(layers=[])
        self.past = past
        self.placeholders = placeholders
        self.layers: Any = []  # Transformers reads `keys` and `values` of each

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        assert layer_idx == len(self.layers), "every layer once, from the first to the last"
        key_states, value_states = _joined(self.past[layer_idx], key_states, value_states, self.placeholders)
        self.layers.append(_Known(key_states, value_states))
        return key_states, value_states

    def keep(self, index: Tensor) -> None:
        """Drop all rows but those in `index`; a row that is named twice appears twice."""
        there = [index.to(known.keys.device) for known in self.layers]
        self.layers = [_Known(known.keys[i], known.values[i]) for known, i in zip(self.layers, there, strict=True)]
