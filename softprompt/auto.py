"""The recipe `auto`: what the user did not set is chosen from the task and the time, and every choice says why.

    config, choices = choose(config, Facts.of(rows, classes))

What was chosen is filled into the settings, so the same run can be written down; docs/log.md has the measurements
behind each rule. Knows nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.config import Config
from softprompt.data.tokenise import Example


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen: its dotted name, its value, and why."""

    setting: str
    value: Any
    why: str


@dataclass(frozen=True)
class Facts:
    """What the rules look at.

    Attributes:
        tasks: how many.
        rows: training rows of all tasks.
        classes: labels of the task with most; 0 if no task is one of classification.
        tokens: mean length of a training row.
    """

    tasks: int
    rows: int
    classes: int
    tokens: float

    @staticmethod
    def of(rows: Sequence[Sequence[Example]], classes: Sequence[Sequence[str]]) -> Facts:
        """The facts of these tasks' training rows and labels."""
        every = [row for task in rows for row in task]
        tokens = sum(len(row.ids) for row in every) / len(every)
        return Facts(len(rows), len(every), max(map(len, classes)), tokens)


def choose(config: Config, facts: Facts) -> tuple[Config, tuple[Choice, ...]]:
    """The settings with all that was not given chosen, and the choices; as they are if the recipe is fixed."""
    if config.recipe == "fixed":
        return config, ()
    given = {f"method.{name}" for name in config.method.model_fields_set}
    given |= {f"train.{name}" for name in config.train.model_fields_set}
    choices = [choice for choice in _rules(config, facts) if choice.setting not in given]
    for section in ("method", "train"):
        update = {c.setting.partition(".")[2]: c.value for c in choices if c.setting.startswith(section)}
        part = getattr(config, section)
        config = config.model_copy(update={section: type(part)(**(part.model_dump() | update))})
    return config.model_copy(update={"recipe": "fixed"}), tuple(choices)


MANY = 20  # classes: from here on a prompt has much to hold


def _rules(config: Config, facts: Facts) -> list[Choice]:
    """Every choice, whether or not the user made it."""
    choices = [Choice("method.name", "prefix-tuning", "keys and values in every layer learn most in a given time")]
    if facts.classes > MANY:
        choices += [
            Choice("method.n_tokens", 128, f"{facts.classes} classes need room"),
            Choice("train.lr", 5e-2, f"{facts.classes} classes take large steps well"),
        ]
    else:
        choices += [
            Choice("method.n_tokens", 32, "longer prompts cost time and learn this kind of task no better"),
            Choice("train.lr", 2e-2, "higher rates are noisy, lower ones slow"),
        ]
    if config.train.minutes is not None:
        choices.append(Choice("train.patience", None, "the schedule fits the time given, and the best prompt is kept"))
    return choices
