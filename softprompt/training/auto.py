"""The recipe `auto`: what the user did not set is chosen from the task and the time, and every choice says why.

    config, choices = choose(config, Facts.of(rows, classes))

What was chosen is filled into the settings, so the same run can be written down; docs/log has the measurements
behind each rule. Knows nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.data.tokenize import Example
from softprompt.training.config import Config


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen: its dotted name, its value, and why."""

    setting: str
    value: Any
    why: str


@dataclass(frozen=True)
class TaskStats:
    """What the rules look at.

    Attributes:
        tasks: how many.
        rows: training rows of all tasks.
        classes: labels of the task with most; 0 if no task is one of classification.
        tokens: mean length of a training row.
        room: tokens that demonstrations may take; none in an encoder-decoder, which cannot hide one from its own row.
        gpu: whether it trains on one.
    """

    tasks: int
    rows: int
    classes: int
    tokens: float
    room: int = 0
    gpu: bool = False

    @staticmethod
    def of(
        rows: Sequence[Sequence[Example]], classes: Sequence[Sequence[str]], room: int = 0, gpu: bool = False
    ) -> TaskStats:
        """The facts of these tasks' training rows and labels."""
        every = [row for task in rows for row in task]
        tokens = sum(len(row.ids) for row in every) / len(every)
        return TaskStats(len(rows), len(every), max(map(len, classes)), tokens, room, gpu)


def choose(config: Config, facts: TaskStats) -> tuple[Config, tuple[Choice, ...]]:
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


FEW_SHOT_ROWS = 50  # training rows: so few are learned by heart, unless the start is good and the steps are small
MANY = 20  # classes: so many need room
SHORT_RUN = 2.0  # minutes of a run under which there is no time for fitting what it starts from
SHOWN = 1024  # tokens of demonstrations that a start is chosen from; half in a hurried run
STEP_TOKENS, STEP_ROWS = 256, 8  # text tokens of a step, about, and rows at most
HURRIED_TOKENS = 128  # the same of a hurried run that learns many rows of more than two labels: it has few steps
GPU_STEP_TOKENS, GPU_STEP_ROWS = 2048, 32  # the same where so many take no longer than a few
NETWORKS = {"p-tuning", "p-tuning-lstm", "prefix-tuning-mlp", "residual", "residual-separate"}
DIRECT = {"prefix-tuning", "prompt-tuning"}


def _rules(config: Config, facts: TaskStats) -> list[Choice]:
    """Every choice, whether or not the user made it."""
    method, rows = config.method, f"{facts.rows} rows"
    choices = [Choice("method.name", "prefix-tuning", "keys and values in every layer learn most in a given time")]
    opened = {"init", "init_text", "init_from"} & method.model_fields_set
    shows = facts.room >= _wanted(facts) and facts.tasks == 1 and not opened
    few = facts.rows < FEW_SHOT_ROWS and method.name in DIRECT
    hurried = config.train.minutes is not None and config.train.minutes < SHORT_RUN
    if method.name in NETWORKS:
        choices.append(Choice("train.lr", 1e-3, "the weights of a network take small steps"))
    elif few and shows and "n_tokens" not in method.model_fields_set:
        choices += [
            Choice("method.init", "demonstrations", f"{rows}: in-context learning is the best start"),
            Choice("method.n_tokens", _wanted(facts), f"{rows}: as many of them as demonstrations as fit"),
            Choice("train.lr", 2e-3, f"{rows}: larger steps learn them by heart"),
        ]
    elif few:
        choices.append(Choice("train.lr", 5e-3, f"{rows}: larger steps learn them by heart"))
    elif method.name == "prefix-tuning":
        choices += _prefix(facts, shows and method.n_tokens <= SHOWN // 4, hurried=hurried)
    else:
        choices += [
            Choice("method.n_tokens", 32, "longer prompts cost time and learn no better"),
            Choice("train.lr", 2e-2, "higher rates are noisy, lower ones slow"),
        ]
    if config.train.minutes is not None:
        choices.append(Choice("train.patience", None, "the schedule fits the time given, and the best prompt is kept"))
        smaller = hurried and facts.classes > 2 and not few  # few stand behind whole demonstrations, which cost more
        tokens, most = HURRIED_TOKENS if smaller else STEP_TOKENS, STEP_ROWS
        if facts.gpu:
            tokens, most = GPU_STEP_TOKENS, GPU_STEP_ROWS
        size = max(2, min(most, round(tokens / facts.tokens)))
        told = "a GPU takes no longer for" if facts.gpu else "in a given time more steps teach more than"
        why = f"rows of {facts.tokens:.0f} tokens: {told} more rows a step"
        choices.append(Choice("train.batch_size", size, why))
    return choices


def _prefix(facts: TaskStats, shows: bool, *, hurried: bool) -> list[Choice]:
    """Of prefix tuning on many rows; `shows` says whether there is room for demonstrations."""
    many = facts.classes > MANY
    told = f"{facts.classes} classes" if facts.classes else "free text"
    length = Choice("method.n_tokens", 128 if many else 32, f"{told}: fewer have no room, more cost time")
    if not shows:
        rate = 5e-2 if many else 1e-2 if facts.classes else 2e-2
        return [length, Choice("train.lr", rate, f"{told}: higher is luck in a short run")]
    tokens, reason = 2 * SHOWN if many else SHOWN, "so many show what there is to see"
    if hurried and 3 * facts.tokens <= tokens // 2:
        tokens, reason = tokens // 2, "in a short run fewer are read sooner and start better"
    tokens = min(tokens, facts.room)
    return [
        length,
        Choice("method.init", "attended", "what rows look at in demonstrations is the best start for few tokens"),
        Choice("method.text_tokens", tokens, f"{told}: {reason}"),
        Choice("train.lr", 5e-3, f"{told}: higher loses what the start knows")
        if facts.classes == 2
        else Choice("train.lr", 2e-2, f"{told}: there is more to learn than the start knows, lower is slow"),
    ]


def _wanted(facts: TaskStats) -> int:
    """Virtual tokens for demonstrations: 256, or three rows if they are longer."""
    return max(256, min(1024, round(3.5 * facts.tokens)))
