"""What rows look at: the attention that they pay to each token of a prefix.

Shapes: H heads, K key/value heads, S prefix slots, G bins, L tokens per bin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.forward import attention_implementation, check_not_empty
from softprompt.prefix.kv import CausalPrefixKV, PrefixKV, require_causal
from softprompt.prefix.packed import pack_rows, run_packed
from softprompt.prefix.packing import Bins, Row

NUMBERS = 2**27  # attention weights held at once: 512 MB


@torch.no_grad()
def attention_mass(
    lm: FrozenLM, prefix_kv: PrefixKV, rows: Sequence[Row], asking: Sequence[Sequence[bool]]
) -> list[Tensor | None]:
    """Of each layer of `geometry.layers` the attention [K, S] that these tokens pay to the slots of the one prefix,
    summed over tokens, and over the heads that share keys; None for a layer without keys. In float32.

    Args:
        bank: of one prefix.
        asking: for each row which of its tokens count.

    Raises DataError for an empty row, or one that does not fit in the model's context.
    """
    prefixes = require_causal(prefix_kv)
    assert len(prefixes.lengths) == 1, "one prefix"
    check_not_empty(row.ids for row in rows)
    shapes = lm.geometry.layers
    found: list[Tensor | None] = [
        None if shape is None else torch.zeros(shape.kv_heads, prefixes.slots, device=lm.device) for shape in shapes
    ]
    together = _rows_at_once(lm, prefixes, rows)
    for start in range(0, len(rows), together):
        part = slice(start, start + together)
        bins, weights = _seen(lm, prefixes, rows[part])
        asked = torch.zeros(bins.ids.numel(), dtype=torch.bool)
        asked[bins.flat] = torch.tensor([on for row in asking[part] for on in row])
        asked_G1L1 = asked.view(bins.ids.shape)[:, None, :, None].to(lm.device)
        for total, layer_GHLK in zip((own for own in found if own is not None), weights, strict=True):
            mass_HS = (layer_GHLK[..., : prefixes.slots] * asked_G1L1).sum((0, 2)).float()
            total += mass_HS.view(len(total), -1, prefixes.slots).sum(1)
    return found


def _rows_at_once(lm: FrozenLM, prefix_kv: CausalPrefixKV, rows: Sequence[Row]) -> int:
    """How many of these rows, each padded to the longest, may be looked at together."""
    longest = max(len(row.ids) for row in rows)
    per_row = longest * (prefix_kv.slots + longest) * lm.config.num_attention_heads * len(lm.geometry.layers)
    return max(1, NUMBERS // per_row)


def _seen(lm: FrozenLM, prefixes: CausalPrefixKV, rows: Sequence[Row]) -> tuple[Bins, list[Tensor]]:
    """The rows, each a bin; the attention weights [G, H, L, S + L] of each layer that has keys."""
    bins, weights = pack_rows(lm, prefixes, rows, 1), list[Tensor]()
    with attention_implementation(lm, "eager"):  # which tells its weights
        run_packed(lm, prefixes, bins, weights)
    return bins, weights
