"""Attention over a paged cache for one step of a batch: decoding rows padded; prefilling rows one by one.

Transformers' own attention for a paged cache multiplies the queries of all rows with the keys of all rows and masks
the products between different rows. Here each row attends to its own keys only. The virtual tokens of KV prompts get
their trained keys and values when written to the cache. On a CPU the keys of a few rows are gathered at a time, so that
they are used while in the core's cache.

Shapes: Q queries of the batch, n rows that decode, C cache slots read, L keys of the longest of them, A query heads,
K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import CacheAllocator

from softprompt.engine.virtual_tokens import LoadedPrompt
from softprompt.prefix.forward import additive

CORE_CACHE_BYTES = 2**20  # keys and values that stay in the cache of a CPU's core


@dataclass(frozen=True)
class RowChunk:
    """One row's tokens in a step: `length` tokens at the positions `past`, `past + 1`, …"""

    past: int
    length: int
    loaded: LoadedPrompt


@dataclass(frozen=True)
class VirtualSpan:
    """Tokens [start, stop) of the batch are the virtual tokens [begin, end) of a prompt."""

    start: int
    stop: int
    begin: int
    end: int
    loaded: LoadedPrompt


def virtual_spans(pieces: Sequence[RowChunk]) -> list[VirtualSpan]:
    """The spans of virtual tokens in the batch."""
    spans, start = [], 0
    for piece in pieces:
        begin, end = piece.loaded.virtual(piece.past, piece.past + piece.length)
        if begin < end:
            first = start + piece.loaded.first + begin - piece.past
            spans.append(VirtualSpan(first, first + end - begin, begin, end, piece.loaded))
        start += piece.length
    return spans


@dataclass(frozen=True)
class _Scoring:
    """How queries and keys become weights.

    Attributes:
        scale: of their products.
        cap: soft cap of the scores (Gemma 2).
        sinks: learned score of no key at all, for each query head (gpt-oss): it takes its share of the weights.
    """

    scale: float
    cap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True)
class DecodeRows:
    """Rows of one query each in a step; their keys are padded to one length.

    Attributes:
        queries, keys: their slices of the batch, and of the keys read with them.
        mask: additive [n, 1, 1, L]; None if all rows have L keys.
    """

    queries: slice
    keys: slice
    mask: Tensor | None

    def attend(self, queries_AQD: Tensor, keys_CKD: Tensor, values_CKD: Tensor, scoring: _Scoring) -> Tensor:
        """Attention outputs [n, A, D]."""
        n = self.queries.stop - self.queries.start
        (heads, size) = keys_CKD.shape[1:]
        # Heads that share keys are queries of one row, so that no key is copied for them.
        grouped_NKGD = queries_AQD[:, self.queries].transpose(0, 1).reshape(n, heads, -1, size)
        keys_NKLD, values_NKLD = (x[self.keys].unflatten(0, (n, -1)).transpose(1, 2) for x in (keys_CKD, values_CKD))
        sinks = scoring.sinks
        grouped = replace(scoring, sinks=None if sinks is None else sinks.reshape(1, heads, -1, 1))
        outputs = attention(grouped_NKGD, keys_NKLD, values_NKLD, self.mask, False, grouped)
        return outputs.reshape(n, -1, values_CKD.shape[2])


@dataclass(frozen=True)
class PrefillRow:
    """A row of several queries in a step.

    Attributes:
        queries, keys: their slices of the batch, and of the keys read with them.
        mask: additive [q, k]; None is plainly causal.
    """

    queries: slice
    keys: slice
    mask: Tensor | None

    def attend(self, queries_AQD: Tensor, keys_CKD: Tensor, values_CKD: Tensor, scoring: _Scoring) -> Tensor:
        """Attention outputs [q, A, D]."""
        keys_KLD, values_KLD = keys_CKD[self.keys].transpose(0, 1), values_CKD[self.keys].transpose(0, 1)
        queries = queries_AQD[None, :, self.queries]
        outputs = attention(queries, keys_KLD[None], values_KLD[None], self.mask, self.mask is None, scoring)
        return outputs[0].transpose(0, 1)


Part = DecodeRows | PrefillRow


@dataclass(frozen=True)
class CacheRead:
    """Keys and values that are read together, and the rows that attend to them.

    Attributes:
        index: [C] cache slots; empty if no row has a past.
    """

    index: Tensor
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class AttentionPlan:
    """The cache reads and writes of all layers of one kind of attention in a step.

    Attributes:
        write: [Q] cache slots of the new tokens.
        reads: executed in order; their parts are in the order of the batch.
    """

    write: Tensor
    reads: tuple[CacheRead, ...]


def plan_attention(
    allocator: CacheAllocator, pieces: Sequence[RowChunk], flat: Tensor, write: Tensor, dtype: torch.dtype
) -> AttentionPlan:
    """The plan of one kind of attention.

    Args:
        flat: cache slots of all rows' keys, row by row; empty where no row has a past.
        write: cache slots of the new tokens.
    """
    window: int | None = getattr(allocator, "sliding_window", None)
    sizes = [allocator.get_seqlen_k(piece.past, piece.length) for piece in pieces]
    # A sliding-window cache places new tokens in the order of the queries, so only leading rows are padded, and
    # everything is read at once.
    whole = window is not None or not len(flat) or flat.device.type != "cpu"
    decoding = next((i for i, piece in enumerate(pieces) if piece.length > 1), len(pieces)) if len(flat) else 0
    rows = decoding if whole else _rows_at_once(allocator, max(sizes[:decoding], default=0))
    reads = list[CacheRead]()
    slot, query = 0, 0
    for first in range(0, decoding, rows or 1):
        row_sizes = sizes[first : min(first + rows, decoding)]
        index, mask = _padded(flat[slot : slot + sum(row_sizes)], row_sizes, allocator.read_trash_index, dtype)
        slot, query = slot + sum(row_sizes), query + len(row_sizes)
        reads.append(CacheRead(index, (DecodeRows(slice(first, query), slice(0, len(index)), mask),)))
    for piece, size in zip(pieces[decoding:], sizes[decoding:], strict=True):
        queries, mask = slice(query, query + piece.length), _causal(piece.length, size, window, dtype, flat.device)
        reads.append(CacheRead(flat[slot : slot + size], (PrefillRow(queries, slice(0, size), mask),)))
        slot, query = slot + size, queries.stop
    return AttentionPlan(write, (_joined(reads),) if whole else tuple(reads))


def _rows_at_once(allocator: CacheAllocator, longest: int) -> int:
    """Number of rows whose keys and values fit in a core's cache between gathering and use."""
    row_bytes = allocator.bytes_per_page // allocator.tokens_per_page * longest
    return max(1, CORE_CACHE_BYTES // max(1, row_bytes))


def _padded(flat: Tensor, sizes: Sequence[int], filler: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Slots of rows of these sizes, padded to the longest, and the padding mask; None if nothing is padded."""
    longest = max(sizes)
    if len(flat) == len(sizes) * longest:
        return flat, None
    there_NL = (torch.arange(longest)[None] < torch.tensor(sizes)[:, None]).to(flat.device)
    slots_NL = flat.new_full(there_NL.shape, filler)
    slots_NL[there_NL] = flat
    return slots_NL.flatten(), additive(there_NL[:, None], dtype)


def _joined(reads: Sequence[CacheRead]) -> CacheRead:
    """All reads as one."""
    parts, key = list[Part](), 0
    for read in reads:
        for part in read.parts:
            parts.append(replace(part, keys=slice(key, key + part.keys.stop)))
            key += part.keys.stop
    return CacheRead(torch.cat([read.index for read in reads]), tuple(parts))


class AttentionStep:
    """One step of a batch, as the attention layers see it.

    Keys and values of layers with other shapes than the cache has are padded in it.

    Args:
        plans: one for each kind of attention, by the number of its allocator.
        spans: where virtual tokens are.
        shape: heads and size of the keys and values in the cache.

    Attributes:
        layers: those that have attended.
    """

    def __init__(
        self,
        cache: PagedAttentionCache,
        plans: Sequence[AttentionPlan],
        spans: Sequence[VirtualSpan],
        shape: tuple[int, int],
    ) -> None:
        self._cache, self._plans = cache, plans
        self._spans = [span for span in spans if span.loaded.layers]
        self._shape, self.layers = shape, set[int]()

    def attend(
        self,
        layer: int,
        queries_AQD: Tensor,
        keys_KQD: Tensor,
        values_KQD: Tensor,
        scale: float,
        cap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Store the new keys and values; returns the attention outputs [Q, A, D].

        Args:
            scale: of the products of queries and keys.
            cap: soft cap of the scores (Gemma 2).
            sinks: [A] learned score of no key at all (gpt-oss).
        """
        self.layers.add(layer)
        scoring = _Scoring(scale, cap, sinks)
        allocator = self._cache.layer_to_allocator[layer]
        plan = self._plans[allocator.index]
        keys_QKD, values_QKD = keys_KQD.transpose(0, 1), values_KQD.transpose(0, 1)
        if self._spans:
            keys_QKD, values_QKD = keys_QKD.clone(), values_QKD.clone()
            for span in self._spans:
                keys_PKD, values_PKD = span.loaded.layers[layer]
                keys_QKD[span.start : span.stop] = keys_PKD[span.begin : span.end]
                values_QKD[span.start : span.stop] = values_PKD[span.begin : span.end]
        heads, size = keys_QKD.shape[1:]
        value_size = values_QKD.shape[2]
        keys_QKD, values_QKD = (_filled(x, self._shape) for x in (keys_QKD, values_QKD))
        parts, new = list[Tensor](), slice(None)
        for read in plan.reads:
            keys_CKD, values_CKD = allocator.update(keys_QKD[new], values_QKD[new], layer, read.index, plan.write[new])
            keys_CKD, values_CKD = keys_CKD[:, :heads, :size], values_CKD[:, :heads, :value_size]
            parts += [part.attend(queries_AQD, keys_CKD, values_CKD, scoring) for part in read.parts]
            new = slice(0)  # the new tokens are in the cache now
        return torch.cat(parts)


def _filled(states_QKD: Tensor, shape: tuple[int, int]) -> Tensor:
    """With zeros up to this many heads of this size."""
    heads, size = states_QKD.shape[1:]
    if (heads, size) == shape:
        return states_QKD
    return pad(states_QKD, (0, shape[1] - size, 0, shape[0] - heads))


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scoring: _Scoring
) -> Tensor:
    """[rows, heads, queries, size]; query heads may share the heads of keys.

    SDPA knows neither caps nor sinks.
    """
    shared, sinks = queries.shape[1] != keys.shape[1], scoring.sinks
    if scoring.cap is None and sinks is None:
        return scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal, scale=scoring.scale, enable_gqa=shared
        )
    if shared:
        keys, values = (x.repeat_interleave(queries.shape[1] // x.shape[1], 1) for x in (keys, values))
    scores = queries @ keys.transpose(2, 3) * scoring.scale
    if scoring.cap is not None:
        scores = scoring.cap * torch.tanh(scores / scoring.cap)
    if causal:
        mask = additive(torch.ones_like(scores[0, :1], dtype=torch.bool).tril(), scores.dtype)
    scores = scores if mask is None else scores + mask
    if sinks is not None:
        none = sinks.to(scores.dtype).reshape(1, scores.shape[1], -1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, none], -1)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(queries.dtype)
    return weights[..., : keys.shape[2]] @ values


def _causal(queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    if queries == keys and (window is None or keys <= window):
        return None
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return additive(((distance >= 0) & (distance < (window or keys)))[None], dtype)
