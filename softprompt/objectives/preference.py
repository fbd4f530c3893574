"""Direct preference optimization: a chosen answer becomes likelier than a rejected one, measured from a reference.

    losses = preference_losses(implied_rewards(policy, reference, beta=0.1))    # log-probabilities [2, R] of R pairs

Rafailov et al. 2023: Direct Preference Optimization. https://arxiv.org/abs/2305.18290. Policy and reference are
prefixes of the same frozen model, prepared together, and there is no second model.

Shapes: R pairs, B rows, N learned tokens of these rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.chunked import cross_entropies
from softprompt.objectives.next_token import supervised
from softprompt.prefix.kv import Prefix, PrefixKV
from softprompt.prefix.prepare import prepare_prefixes


def implied_rewards(policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """The rewards [2, R] that a policy implies: beta · log(policy / reference) of each answer.

    Args:
        policy: [2, R] log-probabilities of the chosen and of the rejected answers, in nats.
        reference: the same of the reference.
        beta: how much a deviation from the reference counts; larger values stay nearer to it.
    """
    return beta * (policy - reference)


def preference_losses(rewards: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """DPO losses [R] in nats: −(1 − ε) · log σ(margin) − ε · log σ(−margin), with margin = chosen − rejected reward.

    Args:
        rewards: [2, R] as of `implied_rewards`.
        label_smoothing: ε, the share of pairs whose answers are taken to be in the wrong order (conservative DPO).
    """
    margins = rewards[0] - rewards[1]
    return -(1 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)


def policy_and_reference(
    lm: FrozenLM,
    rows: Sequence[Example],
    policy: tuple[Sequence[Prefix], Sequence[int]],
    reference: tuple[Sequence[Prefix], Sequence[int]],
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probability [N] of every learned token behind the policy's prefixes and behind the reference's.

    Both are in one bank of prefixes. Without gradient all rows are in one pass. With gradient the reference has a
    forward pass of its own, which spares its backward pass: a step takes 0.76 of the time (docs/log).

    Args:
        policy: prefixes, and of each row the number of its prefix among them.
        reference: the same; its prefixes hold no gradient.
        temperature: that logits are divided by.
    """
    prefix_kv = prepare_prefixes(lm, [*policy[0], *reference[0]])
    others = [len(policy[0]) + number for number in reference[1]]
    if not torch.is_grad_enabled():
        both = token_logprobs(lm, prefix_kv, [*rows, *rows], [*policy[1], *others], temperature=temperature)
        return both[: len(both) // 2], both[len(both) // 2 :]
    with torch.no_grad():
        reference_N = token_logprobs(lm, prefix_kv, rows, others, temperature=temperature)
    return token_logprobs(lm, prefix_kv, rows, policy[1], temperature=temperature), reference_N


def token_logprobs(
    lm: FrozenLM,
    prefix_kv: PrefixKV,
    rows: Sequence[Example],
    prefix_ids: Sequence[int],
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probability [N] of every learned token, row after row, in float32 nats, with gradient into the prefixes."""
    states, targets = supervised(lm, prefix_kv, rows, prefix_ids)
    return -cross_entropies(states, targets, lambda hidden: lm.logits(hidden).float() / temperature)


def row_sums(values: Tensor, rows: Sequence[Example]) -> Tensor:
    """Sums [B] of values [N] of learned tokens over the tokens of each row."""
    counts = torch.tensor([sum(row.mask) for row in rows], device=values.device)
    numbers = torch.arange(len(rows), device=values.device).repeat_interleave(counts)
    return torch.zeros(len(rows), device=values.device).index_add(0, numbers, values)
