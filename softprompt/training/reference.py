"""The reference of a preference or reward objective: prefixes that never change, in one bank with the trained ones."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from softprompt.data.template import Template
from softprompt.data.tokenize import Example
from softprompt.formatting.formatted_prompt import no_prompt
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.training.trial import Learner, Task, prefixes_of


class Reference(ABC):
    """The policy that a trained one is compared with, as prefixes of the same frozen model."""

    @abstractmethod
    def prefixes(self, rows: Sequence[Example]) -> tuple[list[Prefix], list[int]]:
        """Its prefixes of these rows, without gradient, and for each row the number of its prefix."""

    @abstractmethod
    def state_dict(self) -> Mapping[str, Tensor]:
        """What checkpoints keep of it; see `load_state_dict`."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Become the reference that this state was taken of."""


@final
class StartReference(Reference):
    """A soft prompt as it is now, before training, before the same text.

    Args:
        learner: is copied.
    """

    def __init__(self, lm: FrozenLM, learner: Learner, tasks: Sequence[Task]) -> None:
        self._start = copy.deepcopy(learner, {id(lm): lm})
        self._start.to(lm.device)
        self._start.eval()
        for parameter in self._start.parameters():
            parameter.requires_grad_(False)
        self._tasks = tasks

    @torch.no_grad()
    def prefixes(self, rows: Sequence[Example]) -> tuple[list[Prefix], list[int]]:
        """Those of the start."""
        return prefixes_of(self._start, self._tasks, rows)

    def state_dict(self) -> Mapping[str, Tensor]:
        """The start: a resumed run may begin at another one, if that was fitted for some seconds."""
        return self._start.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the start of the run that is resumed."""
        self._start.load_state_dict(state)


@final
class BaseReference(Reference):
    """The base model without a soft prompt: each task's template alone."""

    def __init__(self, lm: FrozenLM, templates: Sequence[Template]) -> None:
        self._prefixes = [no_prompt(lm, template).prefix(lm) for template in templates]

    def prefixes(self, rows: Sequence[Example]) -> tuple[list[Prefix], list[int]]:
        """One for each task."""
        return self._prefixes, [row.task for row in rows]

    def state_dict(self) -> Mapping[str, Tensor]:
        """Nothing: it is made of the settings."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Stays as it is."""
