"""Group-relative policy optimization: answers that are rewarded above their group's mean become likelier.

Shao et al. 2024: DeepSeekMath. https://arxiv.org/abs/2402.03300. The answers were drawn from the policy itself just
now, so the ratio of new and old probabilities is 1, and its gradient is that of the log-probability.

Shapes: P prompts, G answers of each, N tokens of all answers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-4  # added to a group's standard deviation, as TRL does


def group_advantages(rewards_PG: Tensor) -> Tensor:
    """Advantages [P, G]: (reward − mean of its group) / (standard deviation of its group + 1e-4).

    A group whose rewards are all the same has no advantages, and teaches nothing.
    """
    centered = rewards_PG - rewards_PG.mean(1, keepdim=True)
    return centered / (rewards_PG.std(1, keepdim=True) + _TINY)


def k3_divergences(policy_N: Tensor, reference_N: Tensor) -> Tensor:
    """Estimates [N] of KL(policy ‖ reference) at tokens drawn from the policy.

    With r = reference / policy they are r − log r − 1, which is never below 0, and their mean is unbiased (k3 of
    Schulman 2020, http://joschu.net/blog/kl-approx.html).

    Args:
        policy_N: log-probabilities of the tokens, with gradient.
        reference_N: log-probabilities of the same tokens.
    """
    log_ratio = reference_N - policy_N
    return torch.expm1(log_ratio) - log_ratio


def group_relative_losses(policy_N: Tensor, reference_N: Tensor, advantages_N: Tensor, *, beta: float) -> Tensor:
    """Losses [N]: −(ratio · advantage − beta · k3), where the ratio is 1 and only its gradient counts.

    Args:
        policy_N: log-probabilities of the drawn tokens, with gradient.
        reference_N: the reference's.
        advantages_N: of each token that of its answer.
        beta: weight of the divergence from the reference.
    """
    ratio = torch.exp(policy_N - policy_N.detach())
    return beta * k3_divergences(policy_N, reference_N) - ratio * advantages_N
