"""Attention that rows pay to each token of a prefix.

Shapes: H heads, K key/value heads, S prefix slots, G bins, L tokens per bin, N counted tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.forward import check_not_empty
from softprompt.prefix.kv import CausalPrefixKV, PrefixKV, require_single
from softprompt.prefix.packed import pack_rows, run_packed
from softprompt.prefix.packing import Bins, Row
from softprompt.prefix.runtime import PrefixRuntime

_Total = TypeVar("_Total")
_WEIGHTS = 2**27  # attention weights held at once: 512 MB


@torch.no_grad()
def attention_mass(
    lm: FrozenLM, prefix_kv: PrefixKV, rows: Sequence[Row], counted: Sequence[Sequence[bool]]
) -> list[Tensor | None]:
    """For each layer of `geometry.layers` the attention [K, S] that the counted tokens pay to each slot of the prefix.

    Summed over tokens, and over the heads that share keys; None for a layer without keys. In float32.

    Args:
        prefix_kv: of one prefix.
        counted: for each row which of its tokens count.

    Raises:
        DataError: an empty row, or one that does not fit in the model's context.
        UnsupportedModelError: several prefixes, or an encoder–decoder.
    """
    prefixes = require_single(prefix_kv)
    shapes = lm.geometry.layers
    totals: list[Tensor | None] = [
        None if shape is None else torch.zeros(shape.kv_heads, prefixes.slots, device=lm.device) for shape in shapes
    ]
    for part in _in_parts(lm, prefixes, rows, counted):
        for total, weights_NHS in _by_layer(totals, part):
            mass_HS = weights_NHS.sum(0)
            total += mass_HS.view(len(total), -1, prefixes.slots).sum(1).to(total.device)
    return totals


@torch.no_grad()
def attention_shares(
    lm: FrozenLM, prefix_kv: PrefixKV, rows: Sequence[Row], counted: Sequence[Sequence[bool]]
) -> list[Tensor | None]:
    """For each layer of `geometry.layers` the attention [N, H, S] of each counted token, in the order of the rows.

    In float32 on the CPU; None for a layer without keys. Arguments and errors are those of `attention_mass`.
    """
    prefixes = require_single(prefix_kv)
    found: list[list[Tensor] | None] = [None if shape is None else [] for shape in lm.geometry.layers]
    for part in _in_parts(lm, prefixes, rows, counted):
        for parts, weights_NHS in _by_layer(found, part):
            parts.append(weights_NHS.cpu())
    return [None if parts is None else torch.cat(parts) for parts in found]


def _in_parts(
    lm: FrozenLM, prefixes: CausalPrefixKV, rows: Sequence[Row], counted: Sequence[Sequence[bool]]
) -> Iterator[list[Tensor]]:
    """Of as many rows as fit in memory at once, each layer's attention [N, H, S] of the N counted tokens."""
    check_not_empty(row.ids for row in rows)
    together = _rows_at_once(lm, prefixes, rows)
    for start in range(0, len(rows), together):
        part = slice(start, start + together)
        bins, weights = _attention_weights(lm, prefixes, rows[part])
        places_N = bins.flat[torch.tensor([on for row in counted[part] for on in row])]
        yield [
            layer_GHLK[..., : prefixes.slots].transpose(1, 2).flatten(0, 1)[places_N.to(layer_GHLK.device)].float()
            for layer_GHLK in weights
        ]


def _by_layer(totals: Sequence[_Total | None], weights: Sequence[Tensor]) -> Iterator[tuple[_Total, Tensor]]:
    """Each layer's total with its weights. A layer without keys of its own may return weights too, or not."""
    if len(weights) == len(totals):
        return ((total, layer) for total, layer in zip(totals, weights, strict=True) if total is not None)
    return zip((total for total in totals if total is not None), weights, strict=True)


def _rows_at_once(lm: FrozenLM, prefix_kv: CausalPrefixKV, rows: Sequence[Row]) -> int:
    """Rows, each padded to the longest, whose attention weights fit in memory together."""
    longest = max(len(row.ids) for row in rows)
    per_row = longest * (prefix_kv.slots + longest) * lm.geometry.n_heads * len(lm.geometry.layers)
    return max(1, _WEIGHTS // per_row)


def _attention_weights(lm: FrozenLM, prefixes: CausalPrefixKV, rows: Sequence[Row]) -> tuple[Bins, list[Tensor]]:
    """The rows, each a bin, and the attention weights [G, H, L, S + L] of each layer that has keys."""
    bins, weights = pack_rows(lm, prefixes, rows, 1), list[Tensor]()
    with PrefixRuntime.of(lm).use_attention("eager"):  # the implementation that returns its weights
        run_packed(lm, prefixes, bins, weights)
    return bins, weights
