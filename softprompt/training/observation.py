"""What a soft prompt becomes while it is trained: numbers at each validation, if the settings want them.

    drift            mean of ‖p − p₀‖ / ‖p₀‖ over virtual tokens (and layers), p₀ the start
    effective_rank   of the matrix of virtual tokens, mean over layers (Roy, Vetterli 2007)
    attention        share that the answers' tokens pay to the virtual tokens, mean over layers and heads

The same measures as in `softprompt inspect`, on a few validation rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from softprompt.editing.measures import effective_rank, relative_distances, token_vectors
from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.attention_scores import attention_mass
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import packs_rows, prepare_prefixes
from softprompt.training.trial import Trial

OBSERVATIONS = ("drift", "effective_rank", "attention")
_ROWS = 4  # whose attention is measured


@torch.no_grad()
def observe(lm: FrozenLM, trial: Trial, start: Mapping[str, Tensor] | None) -> dict[str, float]:
    """The numbers of a trial's first prompt now. One that cannot be had is left out.

    Args:
        start: the tensors of the untrained prompt.
    """
    prompt = trial.learner.freeze()[0]
    vectors = token_vectors(prompt)
    numbers = {"effective_rank": sum(map(effective_rank, vectors)) / len(vectors)}
    if start is not None:
        numbers["drift"] = relative_distances(vectors, token_vectors(prompt.replace_tensors(start))).mean().item()
    share = _attention(lm, trial)
    return numbers if share is None else numbers | {"attention": share}


def _attention(lm: FrozenLM, trial: Trial) -> float | None:
    """Share of attention to all virtual tokens; None without validation rows, or where it cannot be measured."""
    rows = [row for part in trial.validation_rows for row in part][:_ROWS]
    if not rows or lm.is_encoder_decoder or not packs_rows(lm):
        return None
    trial.learner.eval()
    prefixes, numbers = trial.prefixes(rows)
    trial.learner.train()
    first = prefixes[numbers[0]]
    mine = [row for row, number in zip(rows, numbers, strict=True) if number == numbers[0]]
    counted = [[*row.mask[1:], False] for row in mine]
    tokens = sum(map(sum, counted))
    try:
        masses = attention_mass(lm, prepare_prefixes(lm, [first]), [Row(row.ids) for row in mine], counted)
    except UnsupportedModelError:
        return None
    if first.prompt is None or tokens == 0:
        return None
    virtual = slice(len(first.lead), len(first.lead) + first.prompt.n_tokens)
    shares = [mass_KS[:, virtual].sum().item() for mass_KS in masses if mass_KS is not None]
    return sum(shares) / (len(shares) * tokens * lm.geometry.n_heads)
