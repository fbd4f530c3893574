"""How far a run is, and the learning rate that follows from it. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

FLOOR = 0.02  # the rate never falls to zero: the last steps would be wasted


@dataclass(frozen=True)
class Budget:
    """When a run ends: after `steps`, after `seconds`, or whichever comes first; None means no such bound."""

    steps: int | None
    seconds: float | None

    def progress(self, step: int, elapsed: float) -> float:
        """0 at the start, 1 at the end. `elapsed` counts only if there is a time budget, so that a run bounded by
        steps is the same on a fast and a slow machine."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = elapsed / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def after(self, spent: float) -> Budget:
        """What is left of it when the start of a run took `spent` seconds: of the time at least a tenth."""
        return replace(self, seconds=max(self.seconds - spent, self.seconds / 10)) if self.seconds else self


def default_steps(rows: int, batch_size: int) -> int:
    """Steps when neither steps nor minutes are given: about ten epochs, between 100 and 600."""
    return max(100, min(600, math.ceil(10 * rows / batch_size)))


def rate(kind: Literal["cosine", "linear", "constant"], warmup: float, progress: float) -> float:
    """The factor on the peak learning rate at `progress` in [0, 1].

    Rises linearly during the share `warmup` of the run, then falls by cosine or linearly to `FLOOR`, or stays.
    """
    if progress < warmup:
        return max(progress / warmup, FLOOR)
    done = (progress - warmup) / (1.0 - warmup)
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1.0 - done, "constant": 1.0}[kind]
    return max(fall, FLOOR)
