"""The interface of objectives other than the next token: what the rows of a step cost.

A further objective is a subclass, built by `training.run`, and a name in `objective_config`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM

if TYPE_CHECKING:
    from softprompt.training.objective_config import ObjectiveConfig
    from softprompt.training.reference import Reference
    from softprompt.training.trial import Trial


class Objective(ABC):
    """The loss of a trial's rows, where it is not that of their next tokens, measured from a reference.

    Attributes:
        settings: what must not change between a run and its resumption.
        reference: the prompt that the trained one is compared with; checkpoints keep its state.
    """

    def __init__(self, settings: ObjectiveConfig, reference: Reference) -> None:
        self.settings, self.reference = settings, reference

    @abstractmethod
    def losses(self, lm: FrozenLM, trial: Trial, rows: Sequence[Example]) -> Tensor:
        """The loss [rows] of each row, with gradient into the prompts; without gradient the loss of a validation.

        Other numbers of these rows go to `Trial.note`.
        """

    def state_dict(self) -> Mapping[str, Tensor]:
        """What checkpoints keep of it; see `load_state_dict`."""
        return self.reference.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from this state."""
        self.reference.load_state_dict(state)

    def identity(self) -> object:
        """JSON data of everything that must not change between a run and its resumption."""
        return self.settings.used()
