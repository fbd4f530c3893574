"""Rows of several tasks: drawn in the right shares, each task in its own order, resumable anywhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.sampler import Batches
from softprompt.data.task_mixture import TaskMixture
from softprompt.errors import DataError


def lengths(*rows: int) -> list[list[int]]:
    return [[5] * count for count in rows]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**63 - 1))
def test_one_task_is_plain_batches(rows: int, size: int, seed: int) -> None:
    mixture, plain = TaskMixture(lengths(rows), size, seed, 3.0), Batches([5] * rows, size, seed)
    for _ in range(5):
        assert mixture.next_batch() == [(0, i) for i in plain.next_batch()]
    assert mixture.epoch == pytest.approx(plain.epoch)


@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.integers(1, 9), st.integers(0, 99), st.integers(0, 9))
def test_resume_is_exact_anywhere(rows: list[int], size: int, seed: int, before: int) -> None:
    straight = TaskMixture(lengths(*rows), size, seed, 2.0)
    for _ in range(before):
        straight.next_batch()
    state = json.loads(json.dumps(straight.state()))
    resumed = TaskMixture(lengths(*rows), size, seed, 2.0)
    resumed.next_batch()
    resumed.restore(state)
    assert [resumed.next_batch() for _ in range(4)] == [straight.next_batch() for _ in range(4)]


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.9), (2.0, 0.75), (1e9, 0.5)])
def test_shares(temperature: float, share: float) -> None:
    """900 and 100 rows: nine to one, three to one, even."""
    mixture = TaskMixture(lengths(900, 100), 16, 0, temperature)
    drawn = [t for _ in range(400) for t, _ in mixture.next_batch()]
    assert len(drawn) == 6400
    assert drawn.count(0) / len(drawn) == pytest.approx(share, abs=0.02)


def test_each_task_goes_through_its_own_rows() -> None:
    mixture = TaskMixture(lengths(7, 11), 4, 3, 1.0)
    drawn = [pair for _ in range(40) for pair in mixture.next_batch()]
    for task, rows in ((0, 7), (1, 11)):
        own = [i for t, i in drawn if t == task]
        plain = Batches([5] * rows, 1, 3)
        assert own == plain.take(len(own))


@pytest.mark.parametrize(("rows", "temperature"), [([], 1.0), ([3, 0], 1.0), ([3], 0.5), ([3], float("nan"))])
def test_what_is_refused(rows: list[int], temperature: float) -> None:
    with pytest.raises(DataError):
        TaskMixture(lengths(*rows), 4, 0, temperature)


def test_a_state_of_other_tasks_is_refused() -> None:
    state = TaskMixture(lengths(3, 4), 2, 0).state()
    with pytest.raises(DataError, match="3 tasks"):
        TaskMixture(lengths(3, 4, 5), 2, 0).restore(state)
    with pytest.raises(DataError, match="other data or settings"):
        TaskMixture(lengths(3, 5), 2, 0).restore(state)
    with pytest.raises(DataError, match="not the state"):
        TaskMixture(lengths(3, 4), 2, 0).restore({})  # type: ignore[arg-type]
