"""Event: one line of a run's progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Event:
    """Something that happened, and its numbers. "init", with the validation loss of every start that
    was tried, and "start" come first; of a resumed run with its checkpoint's step. A distillation has "study",
    "answers" and "fit" before them.

    Attributes:
        candidate: whose step, validation or end it is, where there are several.
    """

    kind: Literal["study", "answers", "fit", "init", "start", "step", "validation", "checkpoint", "end"]
    step: int
    numbers: dict[str, float]
    trial: str = ""
