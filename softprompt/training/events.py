"""Event: one line of a run's progress, as reported and as written to metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, with its numbers.

    The order is "fit" (the progress of fitting the initialization to a text), "init" (the validation loss of every
    initialization that was tried), "start", then "step", "validation", "checkpoint" and "end". A distillation begins
    with "study" and "answers".

    Attributes:
        step: finished optimizer steps; of "start" in a resumed run the checkpoint's.
        trial: the name of the trial, if the run has several.
    """

    kind: Literal["study", "answers", "fit", "init", "start", "step", "validation", "checkpoint", "end"]
    step: int
    numbers: dict[str, float]
    trial: str = ""


def trial_of(line: Mapping[str, object]) -> str:
    """The trial's name in a line of metrics.jsonl, or ""; release 0.1 wrote "candidate" instead of "trial"."""
    return str(line.get("trial", line.get("candidate", "")))
