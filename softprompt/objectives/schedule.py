"""Training budget, progress and learning-rate schedule. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

MIN_FACTOR = 0.02  # of the peak learning rate; at zero, the last steps would be wasted


@dataclass(frozen=True)
class Budget:
    """The end of a run: after `steps` or `seconds`, whichever comes first; None means no such limit."""

    steps: int | None
    seconds: float | None

    def progress(self, step: int, elapsed: float) -> float:
        """The share of the budget that is used, in [0, 1].

        `elapsed` seconds count only if the budget has a time, so that a run limited by steps is the same everywhere.
        """
        if self.steps == 0:
            return 1.0
        by_steps = step / self.steps if self.steps else 0.0
        by_time = elapsed / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def after(self, spent: float) -> Budget:
        """The rest of the budget after an initialization of `spent` seconds: of the time at least a tenth."""
        return replace(self, seconds=max(self.seconds - spent, self.seconds / 10)) if self.seconds else self


def default_steps(rows: int, batch_size: int) -> int:
    """Steps of a run with neither steps nor minutes set: about ten epochs, between 100 and 600."""
    return max(100, min(600, math.ceil(10 * rows / batch_size)))


def rate(kind: Literal["cosine", "linear", "constant"], warmup: float, progress: float) -> float:
    """The learning rate at `progress` in [0, 1], as a share of the peak rate.

    Rises linearly during the share `warmup` of the run, then falls by cosine or linearly to `MIN_FACTOR`, or stays.
    """
    if progress < warmup:
        return max(progress / warmup, MIN_FACTOR)
    done = (progress - warmup) / (1.0 - warmup)
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1.0 - done, "constant": 1.0}[kind]
    return max(fall, MIN_FACTOR)
