"""What rows look at: the attention that they pay to each token of a prefix.

Shapes: K key/value heads, S prefix slots, G bins, L tokens per bin, Q queries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softprompt.attach.bank import Bank, causal
from softprompt.attach.cache import PrefixCache
from softprompt.attach.forward import check_not_empty, check_room, forward
from softprompt.model import FrozenLM
from softprompt.packing import Row, pack

NUMBERS = 2**27  # attention weights held at once: 512 MB


@torch.no_grad()
def attention_mass(
    lm: FrozenLM, bank: Bank, rows: Sequence[Row], asking: Sequence[Sequence[bool]]
) -> list[Tensor | None]:
    """Of each layer of `geometry.layers` the attention [K, S] that these tokens pay to the slots of the one prefix,
    summed over tokens, and over the heads that share keys; None for a layer without keys. In float32.

    Args:
        bank: of one prefix.
        asking: for each row which of its tokens count.
    """
    prefixes = causal(bank)
    assert len(prefixes.lengths) == 1, "one prefix"
    check_not_empty(row.ids for row in rows)
    check_room(lm, prefixes.lengths[0] + max(len(row.ids) for row in rows))
    shapes = lm.geometry.layers
    found: list[Tensor | None] = [
        None if shape is None else torch.zeros(shape.kv_heads, prefixes.slots, device=lm.device) for shape in shapes
    ]
    longest = max(len(row.ids) for row in rows)
    per_row = longest * (prefixes.slots + longest) * lm.config.num_attention_heads * len(shapes)
    together = max(1, NUMBERS // per_row)
    with _eager(lm):
        for start in range(0, len(rows), together):
            own = slice(start, start + together)
            weights, asked = _weights(lm, prefixes, rows[own], asking[own])
            with_keys = [i for i, shape in enumerate(shapes) if shape is not None]
            for i, layer_GHLK in zip(with_keys, weights, strict=True):
                mass_HS = (layer_GHLK[..., : prefixes.slots] * asked[:, None, :, None]).sum((0, 2)).float()
                total = found[i]
                assert total is not None
                total += mass_HS.view(len(total), -1, prefixes.slots).sum(1)
    return found


def _weights(
    lm: FrozenLM, prefixes: Bank, rows: Sequence[Row], asking: Sequence[Sequence[bool]]
) -> tuple[list[Tensor], Tensor]:
    """Each layer's attention weights [G, heads, L, S + L], and which tokens ask [G, L]; each row is a bin."""
    bank = causal(prefixes)
    bins = pack([Row(row.ids) for row in rows], 1)
    flat = torch.zeros(bins.ids.numel(), dtype=torch.bool)
    flat[bins.flat] = torch.tensor([on for row in asking for on in row])
    owners = bins.prefix.to(lm.device)
    positions_GL = bins.depth.to(lm.device) + bank.lengths[0]
    prefix_GS = bank.positions[owners]
    visible_prefix = (prefix_GS >= 0)[:, None, :].expand(-1, positions_GL.shape[1], -1)
    weights: list[Tensor] = []
    forward(
        lm,
        ids_GL=bins.ids.to(lm.device),
        positions_GL=positions_GL,
        key_positions_GK=torch.cat([prefix_GS, positions_GL], dim=1),
        visible_GQK=torch.cat([visible_prefix, bins.visible.to(lm.device)], dim=2),
        cache=PrefixCache(bank.past(owners), bank.slots),
        attentions=weights,
    )
    return weights, flat.view(bins.ids.shape).to(lm.device)


@contextlib.contextmanager
def _eager(lm: FrozenLM) -> Iterator[None]:
    """The attention that tells its weights, for a while."""
    before = str(lm.model.config._attn_implementation)
    lm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        lm.model.set_attn_implementation(before)
