"""The outcome of a trial."""

from __future__ import annotations

from dataclasses import dataclass, field

from softprompt.prompts.base import SoftPrompt
from softprompt.training.signals import STOP_SIGNALS

SIGNAL_NAMES = {number.name for number in STOP_SIGNALS}


@dataclass(frozen=True)
class Result:
    """The outcome of a trial: the best prompts by validation loss, and how training went.

    Attributes:
        prompts: one, or one for each task of a method that learns several.
        step: finished optimizer steps.
        seconds: of the run until the trial's end.
        stopped: why it ended: "steps", "minutes", "patience", "halving", "not finite" or the name of a signal.
    """

    prompts: tuple[SoftPrompt, ...]
    step: int
    seconds: float
    stopped: str
    validation_loss: float | None
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def prompt(self) -> SoftPrompt:
        """The first prompt."""
        return self.prompts[0]

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the trial early; then there is a checkpoint to resume from."""
        return self.stopped in SIGNAL_NAMES
