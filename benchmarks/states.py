"""Divergence from the model that reads a whole text, for systems that are no prompt: a cut cache, changed layers.

Shapes: N answer tokens, H width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softprompt.distillation.fidelity import Fidelity
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.chunked import CHUNK, cross_entropies, divergences


@torch.no_grad()
def state_scores(lm: FrozenLM, own_NH: Tensor, teacher_NH: Tensor, targets_N: Tensor) -> dict[str, float]:
    """The scores of `softprompt.distillation.fidelity`, from the hidden states before each answer token."""
    pairs = zip(own_NH.split(CHUNK), teacher_NH.split(CHUNK), strict=True)
    agreed = [lm.logits(own).argmax(-1) == lm.logits(teacher).argmax(-1) for own, teacher in pairs]
    return {
        "divergence": divergences(own_NH, teacher_NH, lm.logits).mean().item(),
        "agreement": torch.cat(agreed).float().mean().item(),
        "log_likelihood": -cross_entropies(own_NH, targets_N, lm.logits).mean().item(),
    }


def add_scores(report: dict[str, Any], found: Fidelity, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Add such scores to a report of `benchmarks.distil.measured`, with the shares that they recover."""
    nothing = found.no_text
    gap = found.full_text.log_likelihood - nothing.log_likelihood
    for name, own in scores.items():
        shares = {
            "recovered": 1 - own["divergence"] / nothing.divergence,
            "gap_recovered": (own["log_likelihood"] - nothing.log_likelihood) / gap,
        }
        report["soft"][name] = {**own, **shares}
