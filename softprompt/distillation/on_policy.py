"""On-policy distillation: the soft prompt answers the queries itself, and the teacher scores these answers.

The student then learns from its own mistakes, which the teacher's answers never show (Agarwal et al.: On-policy
distillation of language models. 2024. https://arxiv.org/abs/2306.13649, with the divergence of the student from the
teacher at each token of the student's answers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from softprompt.data.tokenize import Example
from softprompt.distillation.config import StudyConfig
from softprompt.distillation.teacher import Teacher
from softprompt.formatting.context import end_ids
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.training.trial import Trial


@dataclass(frozen=True)
class OwnAnswers:
    """Gives the rows of a step the soft prompt's own answers, with the teacher's distribution at each of their tokens.

    The answers depend on nothing but the prompt, the run's seed, the step and the row, so a run can be resumed.

    Attributes:
        chunk_of: number of the chunk of text that each row is about, by the row's `where`.
        share: of the run, at its end, in which rows get own answers, in [0, 1].
    """

    teacher: Teacher
    study: StudyConfig
    chunk_of: Mapping[str, int]
    share: float

    @torch.no_grad()
    def __call__(self, trial: Trial, rows: Sequence[Example], progress: float) -> list[Example]:
        """The rows of a step at this progress of the run, in [0, 1]; those given if its last part has not begun.

        Rows that are in no chunk of the text alone (beside other soft prompts) stay as they are.
        """
        others = [row for row in rows if row.where not in self.chunk_of]
        rows = [row for row in rows if row.where in self.chunk_of]
        if progress < 1 - self.share or not rows:
            return [*rows, *others]
        answered = self._answered(trial, rows)
        labels = [row.lesson for row in answered]
        for chunk in {self.chunk_of[row.where] for row in rows}:
            numbers = [i for i, row in enumerate(rows) if self.chunk_of[row.where] == chunk]
            about = [answered[i] for i in numbers]
            found = self.teacher.soft_labels(chunk, about, self.study.top_k, self.study.temperature)
            for i, soft_labels in zip(numbers, found, strict=True):
                labels[i] = soft_labels
        return [*(replace(row, lesson=own) for row, own in zip(answered, labels, strict=True)), *others]

    def _answered(self, trial: Trial, rows: Sequence[Example]) -> list[Example]:
        """The rows with answers that are drawn after the soft prompt."""
        lm = self.teacher.lm
        prefixes, prefix_ids = trial.prefixes(rows)
        queries = [row.ids[: row.mask.index(True)] for row in rows]
        answers = decode_batch(
            lm,
            prepare_prefixes(lm, prefixes),
            queries,
            prefix_ids,
            Sampling(self.study.answer_tokens, self.study.answer_temperature),
            end_ids=[end_ids(lm, self.teacher.template)] * len(rows),
            seeds=[_seed(trial, row) for row in rows],
        )
        found = list[Example]()
        for row, query, answer in zip(rows, queries, answers, strict=True):
            ids = (*answer.ids, *(() if answer.end is None else (answer.end,)))
            mask = (*(False for _ in query), *(True for _ in ids))
            found.append(replace(row, ids=(*query, *ids), mask=mask))
        return found


def _seed(trial: Trial, row: Example) -> int:
    text = f"{trial.settings.seed} {trial.name} {trial.state.step} {row.where}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
