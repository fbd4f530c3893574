"""Training on pairs of answers: direct preference optimization (DPO) of a soft prompt.

Shapes: R pairs, N learned tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.preference import implied_rewards, policy_and_reference, preference_losses, row_sums
from softprompt.training.objective import Objective
from softprompt.training.trial import Trial


@final
class PreferenceObjective(Objective):
    """DPO: the chosen answer of each pair becomes likelier than the rejected one, measured from the reference.

    The chosen answer's own loss, a mean over its tokens, is added with a weight: without it a few steps make both
    answers unlikely, the rejected one more so, and the soft prompt answers with neither (Pang et al. 2024: Iterative
    Reasoning Preference Optimization, https://arxiv.org/abs/2404.19733; TRL's loss type "sft").

    It notes the share of pairs whose chosen answer has the higher implied reward (accuracy), the difference of both
    rewards (margin), each of them, and the chosen answers' own loss in nats a token, if it has a weight.
    """

    def losses(self, lm: FrozenLM, trial: Trial, rows: Sequence[Example]) -> Tensor:
        """Losses [R], in nats, of both answers of each pair behind policy and reference."""
        rejected = [row.rejected for row in rows if row.rejected is not None]
        assert len(rejected) == len(rows), "rows of this objective are pairs"
        answers = [*rows, *rejected]
        prefixes, ids = trial.prefixes(rows)
        others, other_ids = self.reference.prefixes(rows)
        policy_N, reference_N = policy_and_reference(lm, answers, (prefixes, ids * 2), (others, other_ids * 2))
        policy, reference = (row_sums(values, answers).view(2, -1) for values in (policy_N, reference_N))
        rewards = implied_rewards(policy, reference, beta=self.settings.strength)
        chosen, rest = rewards.detach()
        trial.note("accuracy", (chosen > rest).float())
        trial.note("margin", chosen - rest)
        trial.note("chosen_reward", chosen)
        trial.note("rejected_reward", rest)
        losses = preference_losses(rewards, label_smoothing=self.settings.label_smoothing)
        if not self.settings.sft_weight:
            return losses
        counts = torch.tensor([sum(row.mask) for row in rows], device=policy.device)
        token_losses = -policy[0] / counts
        trial.note("chosen_loss", token_losses.detach())
        return losses + self.settings.sft_weight * token_losses
