"""Hidden states of rows after their prefixes, packed into bins, with gradient into the prefixes.

Shapes: T tokens of all rows, G bins, L tokens per bin, S prefix slots, K key/value heads, D head size, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.cache import PrefixCache
from softprompt.prefix.forward import check_fits_context, check_not_empty, forward
from softprompt.prefix.kv import CausalPrefixKV, PrefixKV, PrefixLayout, require_causal
from softprompt.prefix.packing import Bins, Row, best_capacity, pack


def packed_hidden_states(
    lm: FrozenLM, prefix_kv: PrefixKV, rows: Sequence[Row], *, capacity: int | None = None
) -> Tensor:
    """Final hidden states [T, H] of all tokens of all rows, in the order of the rows.

    Args:
        prefix_kv: the prefixes that `Row.prefix` numbers.
        capacity: tokens per bin; 1 pads every row by itself, a large number packs all into one; chosen by
            estimated cost if None.

    Raises:
        DataError: an empty row, or one that does not fit in the model's context after its prefix.
        UnsupportedModelError: the prefixes of an encoder–decoder.
    """
    prefix_kv = require_causal(prefix_kv)
    bins = pack_rows(lm, prefix_kv, rows, capacity)
    return run_packed(lm, prefix_kv, bins).flatten(0, 1)[bins.flat.to(lm.device)]


def recorded_hidden_states(
    lm: FrozenLM, prefix_kv: CausalPrefixKV, rows: Sequence[Row]
) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """`packed_hidden_states`, and by layer the keys [T, K, D] and values [T, K, D'] of these tokens."""
    bins, layers = pack_rows(lm, prefix_kv, rows), dict[int, tuple[Tensor, Tensor]]()
    flat_T = bins.flat.to(lm.device)
    states_GLH = run_packed(lm, prefix_kv, bins, layers=layers)

    def by_token(seen_GKSD: Tensor) -> Tensor:
        return seen_GKSD[:, :, prefix_kv.slots :].transpose(1, 2).flatten(0, 1)[flat_T.to(seen_GKSD.device)]

    recorded = {i: (by_token(keys), by_token(values)) for i, (keys, values) in layers.items()}
    return states_GLH.flatten(0, 1)[flat_T], recorded


def run_packed(
    lm: FrozenLM,
    prefix_kv: CausalPrefixKV,
    bins: Bins,
    attentions: list[Tensor] | None = None,
    layers: dict[int, tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Final hidden states [G, L, H] of rows after their prefixes, as `pack_rows` lays them out.

    Args:
        attentions: as in `forward`.
        layers: filled with the keys [G, K, S + L, D] and values [G, K, S + L, D'] of each layer that has some.
    """
    bins = bins.to(lm.device)
    prefix_ids = bins.prefix
    cache = PrefixCache(prefix_kv.past(prefix_ids), prefix_kv.slots, record=layers is not None)
    positions_GL = bins.depth + prefix_kv.layout.starts[prefix_ids][:, None]
    prefix_GS = prefix_kv.positions[prefix_ids]
    visible_prefix = (prefix_GS >= 0)[:, None, :].expand(-1, positions_GL.shape[1], -1)
    states_GLH = forward(
        lm,
        ids_GL=bins.ids,
        positions_GL=positions_GL,
        key_positions_GK=torch.cat([prefix_GS, positions_GL], dim=1),
        visible_GQK=torch.cat([visible_prefix, bins.visible], dim=2),
        cache=cache,
        attentions=attentions,
    )
    if layers is not None:
        layers.update(cache.seen)
    return states_GLH


def pack_rows(
    lm: FrozenLM, prefix_kv: CausalPrefixKV | PrefixLayout, rows: Sequence[Row], capacity: int | None = None
) -> Bins:
    """The rows that follow these prefixes, packed into bins on the host.

    Args:
        capacity: tokens per bin; chosen by estimated cost if None.

    Raises DataError for an empty row, or one that does not fit in the model's context.
    """
    check_not_empty(row.ids for row in rows)
    bins = pack(
        rows,
        best_capacity(rows, prefix_kv.slots, lm.flops_per_token, lm.geometry.flops_per_pair)
        if capacity is None
        else capacity,
    )
    check_fits_context(lm, int((bins.depth.max(1).values + torch.tensor(prefix_kv.lengths)[bins.prefix]).max()) + 1)
    return bins
