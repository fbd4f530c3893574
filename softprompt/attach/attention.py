"""What rows look at: the attention that they pay to each token of a prefix.

Shapes: K key/value heads, S prefix slots, G bins, L tokens per bin, Q queries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softprompt.attach.bank import Bank, CausalBank, causal
from softprompt.attach.forward import check_not_empty
from softprompt.attach.rows import run
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

    Raises DataError for an empty row, or one that does not fit in the model's context.
    """
    prefixes = causal(bank)
    assert len(prefixes.lengths) == 1, "one prefix"
    check_not_empty(row.ids for row in rows)
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
    lm: FrozenLM, prefixes: CausalBank, rows: Sequence[Row], asking: Sequence[Sequence[bool]]
) -> tuple[list[Tensor], Tensor]:
    """Each layer's attention weights [G, heads, L, S + L], and which tokens ask [G, L]; each row is a bin."""
    bins, weights = pack(rows, 1), list[Tensor]()
    asked = torch.zeros(bins.ids.numel(), dtype=torch.bool)
    asked[bins.flat] = torch.tensor([on for row in asking for on in row])
    run(lm, prefixes, bins, weights)
    return weights, asked.view(bins.ids.shape).to(lm.device)


@contextlib.contextmanager
def _eager(lm: FrozenLM) -> Iterator[None]:
    """The attention that tells its weights, for a while."""
    before = str(lm.model.config._attn_implementation)
    lm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        lm.model.set_attn_implementation(before)
