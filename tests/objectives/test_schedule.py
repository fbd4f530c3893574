"""How far a run is, and the rate that follows."""

from __future__ import annotations

import itertools
from typing import Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.objectives.schedule import MIN_FACTOR, Budget, rate

Kind = Literal["cosine", "linear", "constant"]
kinds = st.sampled_from(get_args(Kind))
warmups = st.floats(0, 0.99)
shares = st.floats(0, 1)


@pytest.mark.parametrize(
    ("kind", "progress", "factor"),
    [
        ("cosine", 0.05, 0.5),  # half-way up
        ("cosine", 0.1, 1.0),
        ("cosine", 0.1 + 0.9 / 3, 0.75),  # (1 + cos 60°) / 2
        ("cosine", 0.55, 0.5),
        ("cosine", 0.1 + 0.9 * 2 / 3, 0.25),
        ("cosine", 1.0, MIN_FACTOR),
        ("linear", 0.1, 1.0),
        ("linear", 0.325, 0.75),
        ("linear", 0.55, 0.5),
        ("linear", 1.0, MIN_FACTOR),
        ("constant", 0.05, 0.5),
        ("constant", 0.1, 1.0),
        ("constant", 1.0, 1.0),
    ],
)
def test_known_values_with_a_tenth_of_warm_up(kind: Kind, progress: float, factor: float) -> None:
    assert rate(kind, 0.1, progress) == pytest.approx(factor)


@settings(deadline=None)
@given(kinds, warmups, shares)
def test_never_nothing_and_never_above_the_peak(kind: Kind, warmup: float, progress: float) -> None:
    assert MIN_FACTOR <= rate(kind, warmup, progress) <= 1.0


@settings(deadline=None)
@given(kinds, warmups, shares, shares)
def test_up_until_warm_and_down_from_there(kind: Kind, warmup: float, one: float, two: float) -> None:
    early, late = sorted((one, two))
    if late <= warmup:
        assert rate(kind, warmup, early) <= rate(kind, warmup, late)
    if early >= warmup:
        assert rate(kind, warmup, early) >= rate(kind, warmup, late)
    assert rate(kind, warmup, warmup) == 1.0


@given(kinds)
def test_without_warm_up_the_first_step_is_at_the_peak(kind: Kind) -> None:
    assert rate(kind, 0.0, 0.0) == 1.0


@given(st.integers(1, 1000), st.floats(0, 1e6))
def test_bounded_by_steps_the_clock_does_not_matter(steps: int, elapsed: float) -> None:
    budget = Budget(steps, None)
    assert [budget.progress(step, elapsed) for step in (0, steps)] == [0.0, 1.0]
    assert budget.progress(steps - 1, elapsed) == (steps - 1) / steps
    assert budget.progress(2 * steps, elapsed) == 1.0


@given(st.floats(1e-3, 1e6), st.integers(0, 10**9), shares)
def test_bounded_by_time_the_steps_do_not_matter(seconds: float, step: int, share: float) -> None:
    budget = Budget(None, seconds)
    assert budget.progress(step, share * seconds) == pytest.approx(share)
    assert budget.progress(step, 2 * seconds) == 1.0


@pytest.mark.parametrize(
    ("step", "elapsed", "progress"),
    [(0, 0.0, 0.0), (10, 5.0, 0.1), (10, 40.0, 0.4), (100, 0.0, 1.0), (0, 100.0, 1.0), (200, 300.0, 1.0)],
)
def test_bounded_by_both_whichever_comes_first(step: int, elapsed: float, progress: float) -> None:
    assert Budget(100, 100.0).progress(step, elapsed) == pytest.approx(progress)


def test_bounded_by_nothing_it_never_ends() -> None:
    assert Budget(None, None).progress(10**9, 1e9) == 0.0


@settings(deadline=None)
@given(st.none() | st.integers(1, 50), st.none() | st.floats(0.1, 50), st.data())
def test_progress_never_goes_back(steps: int | None, seconds: float | None, data: st.DataObject) -> None:
    times = sorted(data.draw(st.lists(st.floats(0, 100), min_size=2, max_size=20)))
    made = [Budget(steps, seconds).progress(step, elapsed) for step, elapsed in enumerate(times)]
    assert all(0.0 <= one <= two <= 1.0 for one, two in itertools.pairwise(made))


def test_a_start_takes_from_the_minutes_and_never_from_the_steps() -> None:
    assert Budget(50, 60.0).after(15.0) == Budget(50, 45.0)
    assert Budget(50, 60.0).after(90.0) == Budget(50, 6.0)
    assert Budget(50, None).after(90.0) == Budget(50, None)
