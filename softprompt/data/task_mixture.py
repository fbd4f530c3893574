"""Rows of several tasks in one endless, seeded, resumable order: task t is drawn in proportion to rows_t ** (1 / T).

Temperature 1 draws every row equally often, infinity every task (Raffel et al. 2020, https://arxiv.org/abs/1910.10683,
section 3.5.2). Within a task the order is that of `Batches`; with one task it is exactly that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, final

import numpy as np

from softprompt.data.sampler import Batches
from softprompt.errors import DataError

__all__ = ["MixtureState", "TaskMixture"]


class MixtureState(TypedDict):
    """Where a sampler of several tasks is: the number of batches drawn, and the state of each task's `Batches`."""

    batch: int
    tasks: list[dict[str, int]]


@final
class TaskMixture:
    """An endless sampler of (task, row) pairs.

    Args:
        lengths: for each task the tokens of its rows.
        batch_size: rows per batch, all tasks together.
        seed: of every draw.
        temperature: at least 1; infinity is allowed.

    Raises DataError for no tasks, no rows, or settings out of range.
    """

    def __init__(self, lengths: Sequence[Sequence[int]], batch_size: int, seed: int, temperature: float = 1.0) -> None:
        if not lengths:
            raise DataError("there are no tasks to train on")
        if not temperature >= 1:
            raise DataError("the temperature must be at least 1", got=temperature)
        self.tasks = [Batches(task_lengths, batch_size, seed) for task_lengths in lengths]
        self.batch_size, self.seed = batch_size, seed
        self.batch = 0  # batches drawn so far
        sizes = np.array([len(task_lengths) for task_lengths in lengths], dtype=float)
        weights = (sizes / sizes.max()) ** (1.0 / temperature)
        self.shares = weights / weights.sum()

    @property
    def epoch(self) -> float:
        """Epochs drawn so far, the mean over all rows."""
        rows = np.array([task.rows for task in self.tasks])
        return float((np.array([task.epoch for task in self.tasks]) * rows).sum() / rows.sum())

    def next_batch(self) -> list[tuple[int, int]]:
        """The next `batch_size` pairs (task, row number)."""
        counts = self._draw()
        self.batch += 1
        return [(t, i) for t, task in enumerate(self.tasks) for i in task.take(counts[t])]

    def state(self) -> MixtureState:
        """Where the sampler is; JSON safe."""
        return {"batch": self.batch, "tasks": [task.state() for task in self.tasks]}

    def restore(self, state: MixtureState) -> None:
        """Go to where `state` was taken. Raises DataError if that was of other rows or settings."""
        if set(state) != {"batch", "tasks"} or len(state["tasks"]) != len(self.tasks):
            raise DataError("not the state of this sampler", expected=f"{len(self.tasks)} tasks", got=sorted(state))
        for task, task_state in zip(self.tasks, state["tasks"], strict=True):
            task.restore(task_state)
        self.batch = state["batch"]

    def _draw(self) -> list[int]:
        """How many rows of each task are in the next batch: a number in [0, 1) for each row, laid on the shares.

        Raw numbers of a counter-based generator are the same for ever, see `Batches`.
        """
        if len(self.tasks) == 1:
            return [self.batch_size]
        key = np.array([self.seed, 2**63 + self.batch], dtype=np.uint64)  # apart from the keys of epochs
        points = np.random.Philox(key=key).random_raw(self.batch_size) / 2.0**64
        chosen = np.searchsorted(self.shares.cumsum()[:-1], points, side="right")
        return np.bincount(chosen, minlength=len(self.tasks)).tolist()
