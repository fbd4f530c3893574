"""Which rows make up which training step: an endless, seeded, resumable order of row numbers.

Every epoch is a new permutation that depends only on (seed, epoch), so a run can be resumed in the middle
of an epoch from two integers. The order is one endless stream: a batch that reaches the end of an epoch is
filled from the next, so every batch has `batch_size` rows, also when there are fewer rows than that.
Knows nothing about tokens or padding; no global random state is read or changed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from softprompt.errors import DataError

__all__ = ["Batches", "permutation", "sample"]


def sample(rows: int, count: int, seed: int) -> list[int]:
    """`count` of the row numbers below `rows` (all, if there are fewer), drawn by seed, in ascending order.

    Files are often sorted by label, so their first rows say little about the rest.
    """
    return sorted(permutation(rows, seed)[:count].tolist())


def permutation(rows: int, seed: int, part: int = 0) -> NDArray[np.int64]:
    """The row numbers below `rows` in an order drawn by seed, another one for each `part`.

    NumPy keeps the raw output of a bit generator the same for ever, but may change its own `permutation`; sorting
    raw numbers therefore lets a run be resumed under another NumPy.
    """
    key = np.array([seed, part], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(rows), kind="stable")


@final
class Batches:
    """An endless sampler of row numbers.

        batches = Batches([len(e.ids) for e in examples], batch_size=16, seed=0)
        rows = [examples[i] for i in batches.next_batch()]

    Args:
        lengths: tokens of each row. Only their number decides the order; the lengths themselves are kept
            as a checksum, so that a state is not restored over other data.
        batch_size: rows per batch.
        seed: 0 up to 2**63 - 1.

    Raises:
        DataError: no rows, or a batch size or seed out of range.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        if len(lengths) == 0:
            raise DataError("there are no rows to train on")
        if batch_size < 1:
            raise DataError("the batch size must be at least 1", got=batch_size)
        if not 0 <= seed < 2**63:
            raise DataError("the seed must be in 0 ... 2**63 - 1", got=seed)
        self.batch_size, self.seed = batch_size, seed
        self._rows = len(lengths)
        self._checksum = zlib.crc32(np.asarray(lengths, dtype="<i8").tobytes())
        self._epoch, self._offset = 0, 0
        self._order = permutation(self._rows, seed)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self._rows

    @property
    def epoch(self) -> float:
        """Epochs drawn so far, with the part of the current one."""
        return self._epoch + self._offset / self._rows

    def next_batch(self) -> list[int]:
        """The next `batch_size` row numbers."""
        return self.take(self.batch_size)

    def take(self, count: int) -> list[int]:
        """The next `count` row numbers."""
        batch: list[int] = []
        while len(batch) < count:
            if self._offset == self._rows:
                self._epoch, self._offset = self._epoch + 1, 0
                self._order = permutation(self._rows, self.seed, self._epoch)
            taken = self._order[self._offset : self._offset + count - len(batch)]
            self._offset += len(taken)
            batch += taken.tolist()
        return batch

    def state(self) -> dict[str, int]:
        """Where the sampler is; JSON safe."""
        return {
            "epoch": self._epoch,
            "offset": self._offset,
            "rows": self._rows,
            "lengths_crc32": self._checksum,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def restore(self, state: Mapping[str, int]) -> None:
        """Go to where `state` was taken; the next batch is the one that would have come there.

        Raises:
            DataError: the state is incomplete, out of range, or of other rows, batch size or seed.
        """
        here = self.state()
        if state.keys() != here.keys():
            raise DataError("not the state of a sampler", expected=sorted(here), got=sorted(state))
        for name in ("rows", "lengths_crc32", "batch_size", "seed"):
            if state[name] != here[name]:
                raise DataError(
                    "the order of rows cannot be resumed: the run was started with other data or settings",
                    where=name,
                    expected=state[name],
                    got=here[name],
                    hint="resume with the data, batch size and seed of the first run, or start a new run",
                )
        if state["epoch"] < 0 or not 0 <= state["offset"] <= self._rows:
            raise DataError("the state of the sampler is out of range", got=dict(state))
        self._epoch, self._offset = state["epoch"], state["offset"]
        self._order = permutation(self._rows, self.seed, self._epoch)
