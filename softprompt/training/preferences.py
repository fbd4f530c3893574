"""Training on pairs of answers: direct preference optimization (DPO) of a soft prompt.

Shapes: R pairs, N learned tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor

from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.preference import implied_rewards, policy_and_reference, preference_losses, row_sums
from softprompt.training.objective import Objective
from softprompt.training.trial import Trial


@final
class PreferenceObjective(Objective):
    """DPO: the chosen answer of each pair becomes likelier than the rejected one, measured from the reference.

    It notes the share of pairs whose chosen answer has the higher implied reward (accuracy), the difference of both
    rewards (margin), and each of them.
    """

    def losses(self, lm: FrozenLM, trial: Trial, rows: Sequence[Example]) -> Tensor:
        """DPO losses [R], in nats, of both answers of each pair behind policy and reference."""
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
        return preference_losses(rewards, label_smoothing=self.settings.label_smoothing)
