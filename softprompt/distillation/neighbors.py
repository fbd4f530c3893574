"""Rows beside other soft prompts, so that a soft prompt that is joined with others still does what its text would do.

A soft prompt that was distilled alone loses a part of its effect after another one or before it, since it has
never met one. In a share of the rows of a composable distillation the student is the joined prompt, and the teacher
reads the text after the other soft prompt, or before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from softprompt.data.tokenize import Example
from softprompt.distillation.config import StudyConfig
from softprompt.distillation.dataset import DistillationExample, DistillationSplits
from softprompt.distillation.teacher import Teacher
from softprompt.editing.compose import concatenate
from softprompt.errors import ConfigError
from softprompt.formatting.formatted_prompt import opening_ids
from softprompt.methods.base import Method
from softprompt.methods.initializers import harvest
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt

EVERY = 2  # of so many rows one comes again beside a neighbor: a third of all


@dataclass(frozen=True, eq=False)
class Neighbor:
    """Another soft prompt in its place beside the one that is trained.

    Attributes:
        name: under which it is saved.
        sha256: of its tensors.
        prompt: its virtual tokens.
        is_first: whether it stands before the trained prompt, or after it.
    """

    name: str
    sha256: str
    prompt: SoftPrompt
    is_first: bool

    def joined(self, prompt: SoftPrompt, lm: FrozenLM) -> SoftPrompt:
        """Both prompts in their order, with gradient into `prompt`."""
        parts = (self.prompt, prompt) if self.is_first else (prompt, self.prompt)
        return concatenate([part.to(device=lm.device) for part in parts], lm)

    def before_rows(self, teacher: Teacher, chunk: int) -> Prefix:
        """The prefix of the teacher: a chunk of the text in the place of the trained prompt.

        A KV prompt after the text stands after the text's own keys and values: nothing can be put before such a
        prompt, so both are joined as two prompts are.
        """
        lm, text = teacher.lm, tuple(teacher.lm.encode(teacher.chunks[chunk]))
        opening, follow = tuple(opening_ids(lm, teacher.template)), teacher.prefix(chunk).follow
        in_front = self.prompt.begins_the_sequence
        if self.is_first:
            return Prefix(self.prompt, () if in_front else opening, (*text, *follow))
        if not in_front:
            return Prefix(self.prompt, (*opening, *text), follow)
        return Prefix(concatenate([harvest(lm, (*opening, *text)), self.prompt.to(device=lm.device)], lm), (), follow)


def load_neighbors(lm: FrozenLM, names: Sequence[str], form: str) -> list[Neighbor]:
    """The saved soft prompts of these names, each before the trained prompt and after it.

    Args:
        form: of the prompt that is trained.

    Raises:
        StoreError, WrongBaseError: one is missing, or belongs to another base model.
        ConfigError: one has another form.
        UnsupportedModelError: the model's soft prompts cannot be joined, since its keys cannot be moved.
    """
    neighbors = list[Neighbor]()
    for name in names:
        prompt, card = store.load(name, lm.geometry)
        if prompt.form != form:
            hint = "soft prompts of one form can be joined: choose the --method by that"
            raise ConfigError("of another form", where=f"composable: {name}", expected=form, got=prompt.form, hint=hint)
        concatenate([prompt, prompt], lm)  # refuses a model whose keys cannot be moved, before the study
        neighbors += [Neighbor(name, card.sha256, prompt, is_first) for is_first in (True, False)]
    return neighbors


@dataclass(frozen=True)
class TrainingRows:
    """The tokenized rows of a distillation.

    Attributes:
        train, validation: rows after the soft prompt alone, then those beside neighbors.
        neighbor_of: the neighbor of each of the latter, by the row's `where`.
    """

    train: list[Example]
    validation: list[Example]
    neighbor_of: Mapping[str, Neighbor]

    @staticmethod
    def of(
        splits: DistillationSplits, teacher: Teacher, neighbors: Sequence[Neighbor], study: StudyConfig
    ) -> TrainingRows:
        """The rows to learn from and to validate with; of each `EVERY`th one comes again, beside a neighbor."""
        neighbor_of = dict[str, Neighbor]()

        def rows_of(split: Sequence[DistillationExample]) -> list[Example]:
            rows = [each.example(teacher.template, teacher.lm.tokenizer) for each in split]
            beside = _beside(rows, [each.chunk for each in split], teacher, neighbors, study) if neighbors else []
            neighbor_of.update((row.where, neighbor) for row, neighbor in beside)
            return [*rows, *(row for row, _ in beside)]

        return TrainingRows(rows_of(splits.train), rows_of(splits.validation), neighbor_of)


def _beside(
    rows: Sequence[Example],
    chunks: Sequence[int],
    teacher: Teacher,
    neighbors: Sequence[Neighbor],
    study: StudyConfig,
) -> list[tuple[Example, Neighbor]]:
    """Every `EVERY`th row beside each neighbor in turn, with the teacher's soft labels for its answer there."""
    groups = dict[tuple[int, int], list[Example]]()
    for i, row in enumerate(rows[::EVERY]):
        groups.setdefault((chunks[EVERY * i], i % len(neighbors)), []).append(row)
    found = list[tuple[Example, Neighbor]]()
    for key, group in sorted(groups.items()):
        neighbor = neighbors[key[1]]
        prefix = neighbor.before_rows(teacher, key[0])
        place = f"after {neighbor.name}" if neighbor.is_first else f"before {neighbor.name}"
        labels = teacher.soft_labels_after(prefix, group, study.top_k, study.temperature)
        for row, soft_labels in zip(group, labels, strict=True):
            lesson = replace(soft_labels, hard=study.hard)
            found.append((replace(row, where=f"{row.where} {place}", lesson=lesson), neighbor))
    return found


class ComposableLearner:
    """A learner whose rows may stand beside neighbors.

    Args:
        learner: of one soft prompt.
        neighbor_of: the neighbor of each such row, by its `where`.
    """

    def __init__(self, learner: Method, lm: FrozenLM, neighbor_of: Mapping[str, Neighbor]) -> None:
        self._learner, self._lm = learner, lm
        self._neighbor_of = neighbor_of
        self.freeze, self.parameters = learner.freeze, learner.parameters
        self.state_dict, self.load_state_dict = learner.state_dict, learner.load_state_dict
        self.train, self.eval = learner.train, learner.eval

    def assign(self, rows: Sequence[Example]) -> tuple[Sequence[SoftPrompt], Sequence[int]]:
        """The prompt alone and joined with each neighbor of these rows, and for each row the number of its prompt."""
        (prompt,), _ = self._learner.assign(rows)
        beside = [self._neighbor_of.get(row.where) for row in rows]
        neighbors = list(dict.fromkeys(filter(None, beside)))
        joined = [neighbor.joined(prompt, self._lm) for neighbor in neighbors]
        return [prompt, *joined], [0 if one is None else 1 + neighbors.index(one) for one in beside]

    def to(self, device: torch.device, /) -> ComposableLearner:
        """The learner on another device."""
        self._learner.to(device)
        return self
