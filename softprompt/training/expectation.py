"""The steps and the time that a run will have on this machine, by its measured speed. Pure arithmetic.

expected = expectation(prepared.config, prepared.facts)
print(expected.sentence(), expected.warning())
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from softprompt.training.auto import STEP_TOKENS, TaskStats, is_short
from softprompt.training.config import Config
from softprompt.training.pace import VALIDATION_SHARE, Pace

TOO_FEW_STEPS = 40  # teach little, whatever the start (docs/log)
ENOUGH_STEPS = 200
LEAST_VALIDATION_ROWS = 8
FIT_SHARE = 0.1  # of the minutes of a run, at most, that fit its start
_FIT_WORTH = 20  # training steps that take as long as fitting a start (docs/log)
_SELECTION_ROWS = 16  # rows that select the tokens of a start


@dataclass(frozen=True)
class Expectation:
    """What a run on this machine will be like.

    Attributes:
        steps: optimizer steps.
        batch_size: rows of a step.
        step_s: seconds of a step.
        start_s: seconds before the first step.
        seconds: of the whole run.
        timed: whether its minutes end it, and not its steps.
    """

    steps: int
    batch_size: int
    step_s: float
    start_s: float
    seconds: float
    timed: bool

    def sentence(self) -> str:
        """The expectation in words."""
        steps = f"{self.steps} step{'s' * (self.steps != 1)} of {self.batch_size} rows"
        each = f"{self.step_s:.2g} s a step on this machine"
        return f"about {steps} in {spoken(self.seconds)} ({each})"

    def warning(self) -> str:
        """A sentence if so few steps teach little; "" otherwise."""
        if not self.timed or self.steps >= TOO_FEW_STEPS:
            return ""
        minutes = math.ceil(self.seconds_for(ENOUGH_STEPS) / 60)
        few = "1 step is" if self.steps == 1 else f"{self.steps} steps are"
        return f"{few} too few to learn much: {ENOUGH_STEPS} steps take about {minutes} minutes on this machine"

    def seconds_for(self, steps: int) -> float:
        """Seconds of such a run with so many steps."""
        return self.start_s + steps * self.step_s / (1 - VALIDATION_SHARE)


def expectation(config: Config, facts: TaskStats) -> Expectation | None:
    """What to expect of a run with these settings, complete; None if the machine's speed is not known."""
    if facts.pace is None:
        return None
    train = config.train
    step_s, start_s = facts.pace.step(train.batch_size * facts.tokens), _start_seconds(config, facts, facts.pace)
    steps, seconds = train.total_steps(facts.rows), math.inf if train.minutes is None else train.minutes * 60
    room = max(seconds - start_s, seconds / 10)  # as `Budget.after`
    fitting = max(1.0, room * (1 - VALIDATION_SHARE) / step_s)
    timed = steps is None or fitting < steps
    taken = math.floor(fitting) if timed or steps is None else steps
    whole = start_s + room if timed else start_s + taken * step_s / (1 - VALIDATION_SHARE)
    return Expectation(taken, train.batch_size, step_s, start_s, whole, timed)


def _start_seconds(config: Config, facts: TaskStats, pace: Pace) -> float:
    """Seconds for the start: the text's forward pass; of selected tokens the rows' attention to it and the fit, too."""
    method, minutes = config.method, config.train.minutes
    if method.init == "demonstrations":
        return pace.forward(method.n_tokens)
    if method.init != "selected":
        return 0.0
    selection = pace.forward(method.text_tokens) + pace.step(_SELECTION_ROWS * facts.tokens)
    if is_short(config, facts) or facts.classes > _SELECTION_ROWS:
        return selection
    fit = _FIT_WORTH * pace.step(STEP_TOKENS)
    return selection + (fit if minutes is None else min(fit, FIT_SHARE * minutes * 60))


def validation_share(config: Config, facts: TaskStats, rows: int) -> float:
    """The share of so many validation rows that a timed run has time for at its start and at its end; 1 of others."""
    minutes, pace = config.train.minutes, facts.pace
    if minutes is None or pace is None or rows <= LEAST_VALIDATION_ROWS:
        return 1.0
    room = VALIDATION_SHARE / 2 * minutes * 60 / pace.forward(rows * facts.tokens)
    return min(1.0, max(LEAST_VALIDATION_ROWS / rows, room))


def spoken(seconds: float) -> str:
    """A time as people say it: "40 seconds", "4 minutes", "2.5 hours"."""
    if seconds < 90:
        return f"{seconds:.0f} second{'s' * (round(seconds) != 1)}"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
