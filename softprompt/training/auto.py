"""The recipe `auto`: chooses every setting that the user left out from the task and the time, with a reason.

    config, choices = choose(config, TaskStats.of(rows, classes))

The choices are filled into the settings, so the run's config.yaml repeats it. docs/log has the measurements for each
rule. Knows nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.data.tokenize import Example
from softprompt.methods.config import MethodConfig
from softprompt.methods.registry import method_spec
from softprompt.training.config import Config
from softprompt.training.pace import Pace


@dataclass(frozen=True)
class Choice:
    """A chosen setting: its dotted name, its value, and the reason."""

    setting: str
    value: object
    why: str


@dataclass(frozen=True)
class TaskStats:
    """Statistics of the training rows that the rules use.

    Attributes:
        tasks: number of tasks.
        rows: training rows of all tasks.
        classes: labels of the task with most labels; 0 without a classification task.
        tokens: mean length of a training row.
        room: tokens that demonstrations may take; 0 where one cannot be masked from its own row: in an
            encoder-decoder, or where layers carry states.
        gpu: whether training runs on a GPU.
        takes_kv: whether the model takes soft prompts of keys and values.
        pace: how fast this machine trains, once it was measured.
    """

    tasks: int
    rows: int
    classes: int
    tokens: float
    room: int = 0
    gpu: bool = False
    takes_kv: bool = True
    pace: Pace | None = None

    @staticmethod
    def of(
        rows: Sequence[Sequence[Example]],
        classes: Sequence[Sequence[str]],
        room: int = 0,
        *,
        gpu: bool = False,
        takes_kv: bool = True,
    ) -> TaskStats:
        """The statistics of these tasks' training rows and labels."""
        every = [row for task in rows for row in task]
        tokens = sum(len(row.ids) for row in every) / len(every)
        return TaskStats(len(rows), len(every), max(map(len, classes)), tokens, room, gpu, takes_kv)


def choose(config: Config, facts: TaskStats) -> tuple[Config, tuple[Choice, ...]]:
    """The settings with the choices filled in, and the choices; unchanged and none if the recipe is fixed."""
    if config.recipe == "fixed":
        return config, ()
    set_by_user = {f"method.{name}" for name in config.method.model_fields_set}
    set_by_user |= {f"train.{name}" for name in config.train.model_fields_set}
    if not facts.takes_kv and "method.name" not in set_by_user:
        config = config.model_copy(update={"method": _without_kv(config.method)})
    choices = [choice for choice in _rules(config, facts) if choice.setting not in set_by_user]
    return with_choices(config, choices).model_copy(update={"recipe": "fixed"}), tuple(choices)


def with_choices(config: Config, choices: Sequence[Choice]) -> Config:
    """The settings with these choices filled in."""
    for section in ("method", "train"):
        update = {c.setting.partition(".")[2]: c.value for c in choices if c.setting.startswith(section)}
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=update)})
    return config


def _without_kv(method: MethodConfig) -> MethodConfig:
    """The same settings for the method that trains input embeddings."""
    values = {name: getattr(method, name) for name in method.model_fields_set}
    settings = method_spec(_EMBEDDING_METHOD).settings
    return settings.model_validate(values | {"name": _EMBEDDING_METHOD})


_EMBEDDING_METHOD = "prompt-tuning"  # for models that take no keys and values
FEW_SHOT_ROWS = 50  # fewer training rows overfit, unless the initialization is good and the learning rate small
MANY_CLASSES = 20  # more classes need a longer prompt
SHORT_RUN = 2.0  # minutes; a shorter run has no time to fit its start, if the machine's speed is not measured
FEW_STEPS = 90  # of `STEP_TOKENS`: what fitted into these minutes on the core where that was found (docs/log)
DEMONSTRATION_TOKENS = 1024  # of demonstrations that init "selected" selects from; half in a short run
SHOWN_RATE = 1e-2  # learning rate of a short run on free text that starts from whole demonstrations
STEP_TOKENS = 256  # text tokens of a step, about
STEP_ROWS = 8  # rows of a step, at most
SHORT_RUN_STEP_TOKENS = 128  # of a short run with many rows and more than two classes, which has few steps
GPU_STEP_TOKENS = 2048  # of a step on a GPU, where they take no longer than a few
GPU_STEP_ROWS = 32  # rows of a step on a GPU, at most


def _rules(config: Config, facts: TaskStats) -> list[Choice]:
    """Every choice, also of settings that the user set."""
    method, rows = config.method, f"{facts.rows} rows"
    spec = method_spec(method.name)
    direct = spec.parameters == "direct"
    choices = [Choice("method.name", "prefix-tuning", "keys and values in every layer learn fastest")]
    if not facts.takes_kv:
        choices = [Choice("method.name", _EMBEDDING_METHOD, "layers of this model carry more than keys and values")]
    own_start = {"init", "init_text", "init_from"} & method.model_fields_set
    shows = facts.room >= _few_shot_tokens(facts) and facts.tasks == 1 and not own_start
    few = facts.rows < FEW_SHOT_ROWS and direct
    short = is_short(config, facts)
    whole = shows and "n_tokens" not in method.model_fields_set  # demonstrations in as many tokens as they need
    if spec.parameters == "network":
        choices.append(Choice("train.lr", 1e-3, "network weights need a small learning rate"))
    elif few and whole:
        choices += [
            Choice("method.init", "demonstrations", f"{rows}: in-context examples are the best start"),
            Choice("method.n_tokens", _few_shot_tokens(facts), f"{rows}: room for as many demonstrations as fit"),
            Choice("train.lr", 2e-3, f"{rows}: a larger learning rate overfits"),
        ]
    elif few:
        choices.append(Choice("train.lr", 5e-3, f"{rows}: a larger learning rate overfits"))
    elif direct and spec.trains_kv and short and whole and not facts.classes:
        why = "free text in a short run: whole examples are the best start"
        choices += [
            Choice("method.init", "demonstrations", why),
            Choice("method.n_tokens", _few_shot_tokens(facts), "free text: room for as many demonstrations as fit"),
            Choice("train.lr", SHOWN_RATE, "free text in a short run: lower is slow"),
        ]
    elif direct and spec.trains_kv:
        choices += _direct_kv(facts, shows and method.n_tokens <= DEMONSTRATION_TOKENS // 4, short=short)
    else:
        choices += [
            Choice("method.n_tokens", 32, "longer prompts are slower and no better"),
            Choice("train.lr", 2e-2, "higher is noisy, lower is slow"),
        ]
    if config.train.minutes is not None:
        choices.append(Choice("train.patience", None, "the schedule fills the given time, and the best prompt is kept"))
        smaller = short and facts.classes > 2 and not few  # few rows come after whole demonstrations, which cost more
        tokens, most_rows = SHORT_RUN_STEP_TOKENS if smaller else STEP_TOKENS, STEP_ROWS
        if facts.gpu:
            tokens, most_rows = GPU_STEP_TOKENS, GPU_STEP_ROWS
        size = max(2, min(most_rows, round(tokens / facts.tokens)))
        reason = "a GPU takes no longer for more rows" if facts.gpu else "more steps beat more rows per step"
        why = f"rows of {facts.tokens:.0f} tokens: {reason}{_fitting_steps(config, facts, size)}"
        choices.append(Choice("train.batch_size", size, why))
    return choices


def is_short(config: Config, facts: TaskStats) -> bool:
    """Whether a run has so little time on this machine that a good start counts more than a careful one."""
    minutes = config.train.minutes
    if minutes is None or facts.pace is None:
        return minutes is not None and minutes < SHORT_RUN
    return minutes * 60 < FEW_STEPS * facts.pace.step(STEP_TOKENS)


def _fitting_steps(config: Config, facts: TaskStats, size: int) -> str:
    """How many steps of so many rows fit into the minutes on this machine; "" if its speed is not known."""
    if facts.pace is None or config.train.minutes is None:
        return ""
    steps = config.train.minutes * 60 / facts.pace.step(size * facts.tokens)
    return f"; at most {steps:.0f} steps fit into {config.train.minutes:g} minutes here"


def _direct_kv(facts: TaskStats, shows: bool, *, short: bool) -> list[Choice]:
    """Choices for keys and values trained directly on many rows.

    Args:
        shows: whether there is room for demonstrations.
        short: whether the run is short.
    """
    many = facts.classes > MANY_CLASSES
    task = f"{facts.classes} classes" if facts.classes else "free text"
    length = Choice("method.n_tokens", 128 if many else 32, f"{task}: fewer hold too little, more are slower")
    if not shows:
        rate = 5e-2 if many else 1e-2 if facts.classes else 2e-2
        return [length, Choice("train.lr", rate, f"{task}: higher is unstable in a short run")]
    tokens, reason = 2 * DEMONSTRATION_TOKENS if many else DEMONSTRATION_TOKENS, "enough examples to select from"
    if short and 3 * facts.tokens <= tokens // 2:
        tokens, reason = tokens // 2, "fewer are encoded sooner in a short run"
    tokens = min(tokens, facts.room)
    return [
        length,
        Choice("method.init", "selected", "the most attended tokens of demonstrations are the best start"),
        Choice("method.text_tokens", tokens, f"{task}: {reason}"),
        Choice("train.lr", 5e-3, f"{task}: higher destroys the initialization")
        if facts.classes == 2
        else Choice("train.lr", 2e-2, f"{task}: the initialization is not enough, lower is slow"),
    ]


def _few_shot_tokens(facts: TaskStats) -> int:
    """Virtual tokens for demonstrations: 256, or three rows if they are longer."""
    return max(256, min(1024, round(3.5 * facts.tokens)))
