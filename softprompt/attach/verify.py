"""Proof on the loaded model, before anything relies on it, that prefix + rows is what concatenation would be."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from softprompt.attach.bank import Bank, Prefix, run_prefixes
from softprompt.attach.forward import MaskStyle, mask_styles
from softprompt.attach.rows import hidden
from softprompt.errors import UnsupportedModelError
from softprompt.model import FrozenLM
from softprompt.packing import Row

TOLERANCE = {torch.float32: 1e-3}  # relative; half precision rounds in another order with other shapes
HALF_TOLERANCE = 0.1


def bank(lm: FrozenLM, prefixes: Sequence[Prefix]) -> Bank:
    """Run every prefix once, with gradient where its prompt has one.

    Raises:
        GeometryError: a KV prompt behind a lead (its keys start at position 0).
        UnsupportedModelError: the model is not exact with a prefix.
    """
    verify(lm)
    return run_prefixes(lm, prefixes)


@torch.no_grad()
def verify(lm: FrozenLM) -> None:
    """Compare prefix + packed rows with the model's own forward on six tokens, once per model.

    Raises UnsupportedModelError with the reason if they differ: a cache that drops, shares or compresses keys,
    masks of its own, positions that cannot be given.
    """
    if lm in mask_styles:
        return
    ids = [(7 * i + 3) % lm.geometry.vocab for i in range(6)]
    truth = lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0].float()
    wanted = torch.cat([truth[3:], truth[3:5]])
    styles: list[MaskStyle] = ["per layer type", "single"] if lm.layer_types else ["single"]
    reason = ""
    for style in styles:
        mask_styles[lm] = style
        try:
            prefixes = run_prefixes(lm, [Prefix(lead=tuple(ids[:3]))])
            ours = lm.logits(hidden(lm, prefixes, [Row(ids[3:]), Row(ids[3:5])], capacity=8)).float()
        except (TypeError, AttributeError, ValueError, KeyError, IndexError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        off = ((ours - wanted).norm() / wanted.norm().clamp_min(1e-6)).item()
        if off <= TOLERANCE.get(lm.dtype, HALF_TOLERANCE):
            return
        reason = f"its logits behind a prefix are off by {off:.1%}"
    del mask_styles[lm]
    raise UnsupportedModelError(
        f"{lm.geometry.architecture} models cannot take a prefix exactly", where=lm.name, got=reason
    )
