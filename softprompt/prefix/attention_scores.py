"""Attention that rows pay to each token of a prefix.

Shapes: H heads, K key/value heads, S prefix slots, G bins, L tokens per bin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.forward import check_not_empty
from softprompt.prefix.kv import CausalPrefixKV, PrefixKV, require_single
from softprompt.prefix.packed import pack_rows, run_packed
from softprompt.prefix.packing import Bins, Row
from softprompt.prefix.runtime import PrefixRuntime

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
    check_not_empty(row.ids for row in rows)
    shapes = lm.geometry.layers
    totals: list[Tensor | None] = [
        None if shape is None else torch.zeros(shape.kv_heads, prefixes.slots, device=lm.device) for shape in shapes
    ]
    together = _rows_at_once(lm, prefixes, rows)
    for start in range(0, len(rows), together):
        part = slice(start, start + together)
        bins, weights = _attention_weights(lm, prefixes, rows[part])
        on = torch.zeros(bins.ids.numel(), dtype=torch.bool)
        on[bins.flat] = torch.tensor([on for row in counted[part] for on in row])
        on_G1L1 = on.view(bins.ids.shape)[:, None, :, None].to(lm.device)
        for total, layer_GHLK in _by_layer(totals, weights):
            mass_HS = (layer_GHLK[..., : prefixes.slots] * on_G1L1.to(layer_GHLK.device)).sum((0, 2)).float()
            total += mass_HS.view(len(total), -1, prefixes.slots).sum(1).to(total.device)
    return totals


def _by_layer(totals: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
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
