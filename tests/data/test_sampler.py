"""The order of rows: complete, seeded, resumable anywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.sampler import Batches, sample
from softprompt.errors import DataError

PINNED = [4, 1, 6, 3, 2, 7, 5, 0, 3, 1, 6, 2, 5, 4, 0, 7]
ROWS, SIZE, SEED = st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**63 - 1)


def stream(batches: Batches, count: int) -> list[int]:
    """The first rows of the endless order."""
    rows: list[int] = []
    while len(rows) < count:
        rows += batches.next_batch()
    return rows[:count]


@given(ROWS, SIZE, SEED)
def test_every_epoch_has_every_row_once_and_every_batch_is_full(rows: int, size: int, seed: int) -> None:
    batches = Batches([5] * rows, size, seed)
    drawn = [batches.next_batch() for _ in range(3 * rows // size + 1)]
    assert {len(batch) for batch in drawn} == {size}
    flat = [i for batch in drawn for i in batch]
    for epoch in range(len(flat) // rows):
        assert sorted(flat[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert batches.epoch == pytest.approx(len(flat) / rows)


@given(ROWS, SIZE, SEED, st.integers(0, 12), st.integers(1, 12))
def test_resume_is_exact_anywhere(rows: int, size: int, seed: int, before: int, after: int) -> None:
    lengths = list(range(1, rows + 1))
    straight = Batches(lengths, size, seed)
    for _ in range(before):
        straight.next_batch()
    state = json.loads(json.dumps(straight.state()))
    resumed = Batches(lengths, size, seed)
    resumed.next_batch()  # where it stood before must not matter
    resumed.restore(state)
    assert resumed.epoch == straight.epoch
    assert [resumed.next_batch() for _ in range(after)] == [straight.next_batch() for _ in range(after)]


@given(SIZE, SIZE)
def test_the_order_does_not_depend_on_the_batch_size(one: int, other: int) -> None:
    assert stream(Batches([1] * 7, one, 3), 50) == stream(Batches([1] * 7, other, 3), 50)


def test_seeds_and_epochs_differ() -> None:
    first = stream(Batches([1] * 100, 10, 0), 200)
    assert first[:100] != first[100:]
    assert first[:100] != stream(Batches([1] * 100, 10, 1), 100)
    assert first[:100] != list(range(100))


def test_the_order_is_pinned() -> None:
    # Runs saved by an earlier version must resume in the same order under any NumPy.
    assert stream(Batches([1] * 8, 4, 7), 16) == PINNED


def test_the_global_random_state_is_left_alone() -> None:
    np.random.seed(1)
    expected = np.random.random(3)
    np.random.seed(1)
    stream(Batches([1] * 8, 4, 7), 16)
    np.testing.assert_array_equal(np.random.random(3), expected)


@pytest.mark.parametrize(
    ("lengths", "size", "seed", "name"),
    [
        ([1, 2, 4], 2, 0, "lengths_crc32"),
        ([1, 2, 3, 4], 2, 0, "rows"),
        ([1, 2, 3], 3, 0, "batch_size"),
        ([1, 2, 3], 2, 1, "seed"),
    ],
)
def test_a_state_of_another_run_is_refused(lengths: list[int], size: int, seed: int, name: str) -> None:
    with pytest.raises(DataError, match="cannot be resumed") as caught:
        Batches(lengths, size, seed).restore(Batches([1, 2, 3], 2, 0).state())
    assert caught.value.where == name


@pytest.mark.parametrize("change", [{"epoch": -1}, {"offset": -1}, {"offset": 4}, {"extra": 1}])
def test_a_damaged_state_is_refused(change: dict[str, int]) -> None:
    batches = Batches([1, 2, 3], 2, 0)
    with pytest.raises(DataError):
        batches.restore({**batches.state(), **change})
    with pytest.raises(DataError):
        batches.restore({"epoch": 0})


@pytest.mark.parametrize(("lengths", "size", "seed"), [([], 1, 0), ([1], 0, 0), ([1], 1, -1), ([1], 1, 2**63)])
def test_impossible_settings_are_refused(lengths: list[int], size: int, seed: int) -> None:
    with pytest.raises(DataError):
        Batches(lengths, size, seed)


def test_a_sample_is_seeded_and_not_the_first_rows() -> None:
    drawn = sample(1000, 128, 0)
    assert drawn == sorted(set(drawn)) == sample(1000, 128, 0) != sample(1000, 128, 1)
    assert len(drawn) == 128 and 40 < sum(row < 500 for row in drawn) < 88
    assert sample(5, 128, 3) == [0, 1, 2, 3, 4] and sample(0, 4, 0) == []
