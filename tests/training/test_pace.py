"""The speed of a machine as numbers, and what is expected of a run by them, against a run that is counted out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from softprompt.objectives.schedule import Budget
from softprompt.training.auto import FEW_STEPS, STEP_TOKENS, TaskStats, choose, is_short
from softprompt.training.config import Config, resolve
from softprompt.training.expectation import (
    ENOUGH_STEPS,
    LEAST_VALIDATION_ROWS,
    TOO_FEW_STEPS,
    expectation,
    spoken,
    validation_share,
)
from softprompt.training.pace import VALIDATION_SHARE, Pace

FACTS = TaskStats(1, 7000, 4, 60.0, 2048)
QUICK, SLOW = Pace(0.01, 1e-4), Pace(1.0, 0.03)


@pytest.mark.parametrize("pace", [Pace(0.5, 0.01), Pace(0.0, 0.02), Pace(1e-9, 3.0)])
def test_two_measurements_give_the_line_through_them(pace: Pace) -> None:
    found = Pace.between((12, pace.step(12)), (96, pace.step(96)))
    assert (found.per_step, found.per_token) == pytest.approx((pace.per_step, pace.per_token), abs=1e-6)


@pytest.mark.parametrize(("few_s", "many_s"), [(2.0, 1.0), (1.0, 1.0), (0.0, 1.0)])
def test_a_noisy_clock_gives_no_negative_time(few_s: float, many_s: float) -> None:
    pace = Pace.between((12, few_s), (96, many_s))
    assert pace.per_step >= 0 and pace.per_token > 0
    assert pace.step(96) == pytest.approx(many_s)


def test_one_long_row_in_both_measurements_gives_a_speed() -> None:
    assert Pace.between((120, 3.0), (120, 2.4)) == Pace(0.0, 0.02)


def config_of(**train: object) -> Config:
    return choose(resolve({f"train.{name}": value for name, value in train.items()}), FACTS)[0]


def counted_steps(config: Config, pace: Pace, start_s: float) -> tuple[int, float]:
    """Steps, and seconds of the run: step for step by the budget of the loop, a ninth of each step for validation."""
    minutes, step = config.train.minutes, 0
    budget = Budget(config.train.total_steps(FACTS.rows), None if minutes is None else minutes * 60).after(start_s)
    elapsed, each = 0.0, pace.step(config.train.batch_size * FACTS.tokens) / (1 - VALIDATION_SHARE)
    while budget.progress(step, elapsed) < 1:
        step, elapsed = step + 1, elapsed + each
    return step, start_s + elapsed


@pytest.mark.parametrize("pace", [QUICK, SLOW, Pace(0.2, 0.004)])
@pytest.mark.parametrize(
    "train", [{"minutes": 4}, {"minutes": 0.5}, {"steps": 120}, {"steps": 120, "minutes": 3}, {"epochs": 2}]
)
def test_the_expectation_is_what_happens(pace: Pace, train: dict[str, object]) -> None:
    config, facts = config_of(**train), replace(FACTS, pace=pace)
    expected = expectation(config, facts)
    assert expected is not None
    steps, seconds = counted_steps(config, pace, expected.start_s)
    assert expected.steps in (steps, steps - 1)
    assert expected.seconds == pytest.approx(seconds, rel=0.02, abs=2 * expected.step_s)
    assert expected.timed == (expected.steps < (config.train.total_steps(FACTS.rows) or 10**9))


def test_nothing_is_expected_of_an_unknown_machine() -> None:
    assert expectation(config_of(minutes=4), FACTS) is None


def test_it_warns_when_so_few_steps_teach_little_and_says_what_would_do() -> None:
    facts = replace(FACTS, pace=SLOW)
    expected = expectation(config_of(minutes=1), facts)
    assert expected is not None and expected.steps < TOO_FEW_STEPS
    assert expected.sentence() in (
        f"about {expected.steps} steps of {expected.batch_size} rows in 60 seconds "
        f"({expected.step_s:.2g} s a step on this machine)"
    )
    needed = int(expected.warning().partition("about ")[2].split()[0])
    assert f"{ENOUGH_STEPS} steps" in expected.warning()
    longer = expectation(resolve({"train.minutes": needed, "train.batch_size": expected.batch_size}), facts)
    assert longer is not None and longer.steps >= ENOUGH_STEPS
    for train in ({"minutes": 60}, {"steps": 3}):
        quiet = expectation(config_of(**train), facts)
        assert quiet is not None and not quiet.warning(), "enough steps; or as many as the user wants"


def test_short_is_what_is_short_on_this_machine() -> None:
    """By the steps that fit; on the core where the rules were found these were those of two minutes."""
    two = config_of(minutes=2)
    as_then = Pace(0.0, 120 / FEW_STEPS / STEP_TOKENS)
    assert not is_short(two, replace(FACTS, pace=as_then)) and not is_short(two, FACTS)
    assert is_short(config_of(minutes=1.9), replace(FACTS, pace=as_then)) and is_short(config_of(minutes=1.9), FACTS)
    assert is_short(config_of(minutes=10), replace(FACTS, pace=SLOW))
    assert not is_short(config_of(minutes=0.5), replace(FACTS, pace=QUICK))
    assert not is_short(config_of(steps=3), replace(FACTS, pace=SLOW))


@pytest.mark.parametrize(("pace", "share"), [(QUICK, 1.0), (SLOW, LEAST_VALIDATION_ROWS / 72)])
def test_validation_rows_by_time(pace: Pace, share: float) -> None:
    facts = replace(FACTS, pace=pace)
    assert validation_share(config_of(minutes=1), facts, 72) == pytest.approx(share)
    assert validation_share(config_of(steps=9), facts, 72) == 1
    assert validation_share(config_of(minutes=1), FACTS, 72) == 1
    between = validation_share(config_of(minutes=10), replace(FACTS, pace=SLOW), 72)
    seconds = SLOW.forward(between * 72 * FACTS.tokens)
    assert seconds == pytest.approx(VALIDATION_SHARE / 2 * 10 * 60, rel=0.02)


@pytest.mark.parametrize(
    ("seconds", "words"), [(1, "1 second"), (75, "75 seconds"), (240, "4 minutes"), (9000, "2.5 hours")]
)
def test_spoken(seconds: float, words: str) -> None:
    assert spoken(seconds) == words
