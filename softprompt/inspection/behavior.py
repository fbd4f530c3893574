"""Section "what it does": how a soft prompt changes the predictions themselves.

    Δ(v) = mean over rows of  log p(v | P, x) − log p(v | x)     at the answer's first token

with the change of entropy there, and the divergence from the base on the prompt's own rows and on foreign ones
(collateral: what the prompt changes where it should change nothing). This is behavior itself, so it needs no control.

Shapes: R rows, N answer tokens, H width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.data.tokenizer import decode
from softprompt.inspection.effect import PromptEffect
from softprompt.models.frozen_lm import FrozenLM

_TOP = 8
_LEAST = 1e-4  # mean probability, after the prompt or without it, of tokens worth listing


@dataclass(frozen=True)
class TokenShift:
    """One token of the vocabulary.

    Attributes:
        token: its text.
        change: Δ in nats.
        probability: mean after the soft prompt.
        base_probability: mean without it.
    """

    token: str
    change: float
    probability: float
    base_probability: float


@dataclass(frozen=True)
class Behavior:
    """What a soft prompt does.

    Attributes:
        promoted, demoted: tokens with the largest changes at the answer's start, among those that either side gives a
            mean probability of 0.0001.
        entropy, base_entropy: mean at the answer's start, nats.
        own_divergence: KL(prompt ‖ base) on the rows, nats an answer token.
        foreign_divergence: the same on foreign rows; None without any.
    """

    promoted: tuple[TokenShift, ...]
    demoted: tuple[TokenShift, ...]
    entropy: float
    base_entropy: float
    own_divergence: float
    foreign_divergence: float | None


@torch.no_grad()
def behavior(effect: PromptEffect, foreign: PromptEffect | None = None) -> Behavior:
    """Measure what the soft prompt does.

    Args:
        foreign: the same soft prompt on rows of other tasks.
    """
    lm, first = effect.lm, effect.first_places().to(effect.states.device)
    logp_RV = _log_probabilities(lm, effect.states[first])
    base_RV = _log_probabilities(lm, effect.base_states[first])
    change_V = (logp_RV - base_RV).mean(0)
    mean_V, base_mean_V = logp_RV.exp().mean(0), base_RV.exp().mean(0)
    listed = torch.maximum(mean_V, base_mean_V) >= _LEAST
    ranked = change_V.masked_fill(~listed, 0.0)

    def shifts(ids: Tensor) -> tuple[TokenShift, ...]:
        return tuple(
            TokenShift(decode([i], lm.tokenizer), change_V[i].item(), mean_V[i].item(), base_mean_V[i].item())
            for i in ids.tolist()
        )

    count = min(_TOP, len(ranked))
    up, down = ranked.topk(count), (-ranked).topk(count)
    return Behavior(
        promoted=shifts(up.indices[up.values > 0]),
        demoted=shifts(down.indices[down.values > 0]),
        entropy=_entropy(logp_RV),
        base_entropy=_entropy(base_RV),
        own_divergence=effect.total,
        foreign_divergence=foreign.total if foreign is not None else None,
    )


def _log_probabilities(lm: FrozenLM, states_RH: Tensor) -> Tensor:
    """[R, V] in float32."""
    return lm.logits(states_RH).float().log_softmax(-1)


def _entropy(logp_RV: Tensor) -> float:
    return -(logp_RV.exp() * logp_RV).sum(-1).mean().item()
