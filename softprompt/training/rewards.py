"""Training by rewards: group-relative policy optimization (GRPO) of a soft prompt on answers that it gives itself.

Each step draws a group of answers to each row behind the current prompt, rewards them, and makes those above their
group's mean likelier. A seed of its own for every answer, made of the run's seed, the step and the row, lets a run be
resumed, split into parts or shared by processes with the same answers.

Shapes: P rows, G answers of each, N tokens of all answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from softprompt.data.template import Template
from softprompt.data.tokenize import Example
from softprompt.errors import UnsupportedModelError
from softprompt.formatting.context import end_ids
from softprompt.inference.answer import Answer
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.group_relative import group_advantages, group_relative_losses, k3_divergences
from softprompt.objectives.preference import policy_and_reference, row_sums, token_logprobs
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prefix.tolerance import tolerance
from softprompt.training.objective import Objective
from softprompt.training.objective_config import ObjectiveConfig
from softprompt.training.reference import Reference
from softprompt.training.reward_function import RewardFunction
from softprompt.training.trial import Trial

_PROVEN_ANSWERS = 4  # answers whose probabilities are compared
_PROVEN_TOKENS = 8  # first tokens of each


@final
class RewardObjective(Objective):
    """GRPO: answers that are rewarded above the mean of their group become likelier; the reference stays near.

    A step notes the mean reward, its standard deviation inside the groups, the divergence from the reference, the share
    of answers that were cut off, and their length. A validation gives the likeliest answer to each row, as `generate`
    does; its loss is minus the mean reward.

    Args:
        templates: of each task.
    """

    def __init__(
        self, settings: ObjectiveConfig, reference: Reference, reward: RewardFunction, templates: Sequence[Template]
    ) -> None:
        super().__init__(settings, reference)
        self.reward, self.templates = reward, templates
        self._is_proven = False

    def losses(self, lm: FrozenLM, trial: Trial, rows: Sequence[Example]) -> Tensor:
        """Of each row [P] the mean of its answers' losses, each of them the mean of its tokens' losses."""
        prefixes, prefix_ids = trial.prefixes(rows)
        if not torch.is_grad_enabled():
            return self._validation(lm, trial, rows, prefixes, prefix_ids)
        settings, group = self.settings, self.settings.group_size
        seeds = [_seed(trial, row, number) for row in rows for number in range(group)]
        sampling = Sampling(settings.max_new_tokens, temperature=settings.temperature, n=group)
        drawn = _SeenLogits()
        answers = self._answers(lm, rows, prefixes, prefix_ids, sampling, seeds, drawn)
        examples = [answered(rows[i // group], answer) for i, answer in enumerate(answers)]
        rewards_PG = self._rewards(rows, answers, group).to(lm.device)
        repeated = [number for number in prefix_ids for _ in range(group)]
        policy_N, reference_N = self._logprobs(lm, examples, prefixes, repeated)
        self._prove(lm, drawn, examples, policy_N)
        counts = torch.tensor([sum(example.mask) for example in examples], device=lm.device)
        advantages_N = group_advantages(rewards_PG).flatten().repeat_interleave(counts)
        losses_N = group_relative_losses(policy_N, reference_N, advantages_N, beta=settings.strength)
        _note_answers(trial, rewards_PG, answers, counts)
        trial.note("kl", k3_divergences(policy_N.detach(), reference_N))
        return (row_sums(losses_N, examples) / counts).view(len(rows), group).mean(1)

    def _validation(
        self, lm: FrozenLM, trial: Trial, rows: Sequence[Example], prefixes: Sequence[Prefix], prefix_ids: Sequence[int]
    ) -> Tensor:
        """Minus the reward [P] of the likeliest answer to each row."""
        sampling = Sampling(self.settings.max_new_tokens, temperature=0.0)
        answers = self._answers(lm, rows, prefixes, prefix_ids, sampling, [0] * len(rows), None)
        rewards_P1 = self._rewards(rows, answers, 1)
        trial.note("reward", rewards_P1)
        return -rewards_P1[:, 0]

    def _answers(
        self,
        lm: FrozenLM,
        rows: Sequence[Example],
        prefixes: Sequence[Prefix],
        prefix_ids: Sequence[int],
        sampling: Sampling,
        seeds: Sequence[int],
        drawn: _SeenLogits | None,
    ) -> list[Answer]:
        """Answers behind the live prompts, `sampling.n` to each row."""
        with torch.no_grad():
            prefix_kv = prepare_prefixes(lm, prefixes)
            ends = [end_ids(lm, template) for template in self.templates]
            return decode_batch(
                lm,
                prefix_kv,
                [row.ids for row in rows],
                prefix_ids,
                sampling,
                end_ids=[ends[row.task] for row in rows],
                seeds=seeds,
                on_logits=drawn.add if drawn is not None else lambda numbers, logits: None,
            )

    def _rewards(self, rows: Sequence[Example], answers: Sequence[Answer], group: int) -> Tensor:
        """The user's rewards [P, G]."""
        sources = [(row.record, self.templates[row.task]) for row in rows if row.record is not None]
        assert len(sources) == len(rows), "rows of this objective keep their records"
        repeated = [source for source in sources for _ in range(group)]
        return torch.tensor(self.reward(repeated, [answer.text for answer in answers])).view(len(rows), group)

    def _logprobs(
        self, lm: FrozenLM, examples: Sequence[Example], prefixes: Sequence[Prefix], prefix_ids: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N] behind the live prompts and behind the reference; the latter unused if beta is 0."""
        heat = self.settings.temperature
        if self.settings.strength == 0:
            policy_N = token_logprobs(lm, prepare_prefixes(lm, prefixes), examples, prefix_ids, temperature=heat)
            return policy_N, policy_N.detach()
        reference = self.reference.prefixes(examples)
        return policy_and_reference(lm, examples, (prefixes, prefix_ids), reference, temperature=heat)

    def _prove(self, lm: FrozenLM, drawn: _SeenLogits, examples: Sequence[Example], policy_N: Tensor) -> None:
        """Compare, once, the probabilities that answers were drawn by with those that are trained.

        Raises UnsupportedModelError if they differ by more than the model's tolerance.
        """
        if self._is_proven:
            return
        off, allowed = drawn.difference(examples, policy_N, self.settings.temperature), tolerance(lm)
        if off > allowed:
            raise UnsupportedModelError(
                "answers are drawn by other probabilities than those that are trained",
                where=lm.name,
                expected=f"log-probabilities that differ by {allowed:.1%} at most",
                got=f"{off:.1%}",
                hint="--dtype float32, or a base without --load-in",
            )
        self._is_proven = True


class _SeenLogits:
    """The logits that the first tokens of the first answers were drawn by."""

    def __init__(self) -> None:
        self._logits: dict[int, list[Tensor]] = {}

    def add(self, numbers: Sequence[int], logits: Tensor) -> None:
        """Keep those of one step of decoding; see `decode_batch`."""
        for place, number in enumerate(numbers):
            if number < _PROVEN_ANSWERS and len(seen := self._logits.setdefault(number, [])) < _PROVEN_TOKENS:
                seen.append(logits[place].clone())

    def difference(self, examples: Sequence[Example], policy_N: Tensor, temperature: float) -> float:
        """The relative difference of these tokens' log-probabilities from `policy_N` [N], those of all tokens."""
        ours, wanted = list[Tensor](), list[Tensor]()
        begin = 0
        for number, example in enumerate(examples[:_PROVEN_ANSWERS]):
            tokens = [token for token, learned in zip(example.ids, example.mask, strict=True) if learned]
            logits = self._logits.get(number, [])[: len(tokens)]
            for place, seen in enumerate(logits):
                ours.append(torch.log_softmax(seen / temperature, -1)[tokens[place]])
                wanted.append(policy_N[begin + place].detach())
            begin += len(tokens)
        trained = torch.stack(wanted)
        return ((torch.stack(ours) - trained).norm() / trained.norm().clamp_min(1.0)).item()


def answered(row: Example, answer: Answer) -> Example:
    """A row with an answer that was drawn for it; its tokens, and the one that ended it, are learned."""
    ids = [*answer.ids, *([] if answer.end is None else [answer.end])]
    return replace(row, ids=(*row.ids, *ids), mask=(*(False for _ in row.ids), *(True for _ in ids)), record=None)


def _note_answers(trial: Trial, rewards_PG: Tensor, answers: Sequence[Answer], counts: Tensor) -> None:
    trial.note("reward", rewards_PG)
    trial.note("reward_std", rewards_PG.std(1))
    trial.note("answer_tokens", counts.float())
    trial.note("cut_off", torch.tensor([float(answer.finish == "length") for answer in answers]))


def _seed(trial: Trial, row: Example, number: int) -> int:
    """The seed of an answer, which depends on nothing but the run's seed, the step, the row and the answer's number."""
    text = f"{trial.settings.seed} {trial.name} {trial.state.step} {row.task} {row.where} {number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
