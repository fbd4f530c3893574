"""Checks everything about a run before its base model is loaded: names, rows, lengths; and chooses the recipe.

    prepared = prepare(config)        # no model weights touched

Knows nothing of prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from softprompt.data.default_template import default_template
from softprompt.data.memory_rows import RowSource
from softprompt.data.objective_rows import encode_pairs, encode_prompts, same_answers
from softprompt.data.read_options import ReadOptions, parse_columns
from softprompt.data.records import Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.splits import Splits, load_splits
from softprompt.data.template import Template, answered_apart, bos_ids, head
from softprompt.data.template_notes import row_notes
from softprompt.data.tokenize import Example, encode_rows, within
from softprompt.data.tokenizer import Tokenizer, encode
from softprompt.data.vocabulary import check_vocabulary
from softprompt.errors import ConfigError, DataError
from softprompt.files import check_run_folder
from softprompt.formatting.formatted_prompt import PLACE, frame_parts
from softprompt.methods.registry import method_spec
from softprompt.models.device import pick_device
from softprompt.models.loading import (
    carries_states,
    context_length,
    is_encoder_decoder,
    load_tokenizer,
    vocabulary_size,
)
from softprompt.prompts import store
from softprompt.prompts.forms import form_class
from softprompt.settings import unescaped
from softprompt.training import auto, tracking
from softprompt.training.checkpoint import latest_step
from softprompt.training.config import Config
from softprompt.training.reward_function import RewardFunction

RUNS = ".runs"  # folder of checkpoints and logs, beside the soft prompts
_TASK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class PreparedTask:
    """The checked rows of one task.

    Attributes:
        name: empty if it is the only one.
        train, validation: tokenized; each row carries the number of its task.
        dropped: rows left out because they were too long.
        longest: the most tokens that a row may have.
        reading: how the rows were read.
        notes: how the template reads the rows, where a user should know.
        frame: the sentence around the virtual tokens; "": none.
    """

    name: str
    splits: Splits
    template: Template
    train: Sequence[Example]
    validation: Sequence[Example]
    dropped: int
    longest: int = 0
    reading: ReadOptions = field(default_factory=ReadOptions)
    notes: tuple[str, ...] = ()
    frame: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels of a classification task, sorted; empty for other tasks."""
        if not shape_of(self.splits.train[0]).has_classes:
            return ()
        return tuple(sorted({record.target for record in self.splits.train if record.target is not None}))


@dataclass(frozen=True)
class PreparedTraining:
    """Settings with everything that can be checked before the base model is loaded.

    Attributes:
        config: complete, with the choices of the recipe.
        facts: statistics of the rows, which the recipe chose by.
        choices: the settings that it chose, with reasons.
        folder: where the artifact will be; with several tasks each has its own, see `folder_of`.
        run: where checkpoints and metrics.jsonl go.
        given: the settings before the recipe chose.
        reward: the user's function, of an objective that has one.
    """

    config: Config
    facts: auto.TaskStats
    choices: tuple[auto.Choice, ...]
    tasks: tuple[PreparedTask, ...]
    folder: Path
    run: Path
    given: Config
    reward: RewardFunction | None = None

    def folder_of(self, part: str) -> Path:
        """Where the artifact of a task (or expert) goes: NAME.part, or NAME itself for the only one."""
        return _folder_of(self.folder, part)

    @property
    def part_names(self) -> list[str]:
        """Ends of the names of the soft prompts that the run saves; "" for the only one."""
        return _part_names(self.config, [task.name for task in self.tasks])


def prepare(
    config: Config,
    *,
    data: RowSource | None = None,
    overwrite: bool = False,
    resume: bool = False,
    trust_remote_code: bool = False,
) -> PreparedTraining:
    """Check names, every row of data, and lengths in tokens; choose the recipe.

    Args:
        data: rows in memory (a list of dicts, a `datasets.Dataset`, or a mapping of splits to them) or a place, instead
            of `config.data`.

    Raises:
        ConfigError: name or data missing, settings of another objective, a reward that cannot be loaded.
        StoreError: the name is taken (without `overwrite`), or an unfinished run of that name is there.
        DataError: anything wrong with the rows.
        ModelError: the tokenizer cannot be found.
    """
    if not config.name or (not config.data and data is None):
        missing = "name" if not config.name else "data"
        raise ConfigError(f"{missing} is not given", hint="softprompt train --model M --data D --name N")
    config.objective.check()
    tracking.check_tracker(config.train.track)
    folder = store.locate(config.name)
    run = folder.parent / RUNS / folder.name
    sources = _sources(config, data)
    _check_names(config, list(sources), folder, overwrite)
    check_run_folder(run, latest_step(run) is not None, overwrite=overwrite, resume=resume)
    reward = RewardFunction(config.objective.reward) if config.objective.reward is not None else None
    # rows first: their mistakes show before a model is downloaded or converted
    loaded = {name: _splits(config, name, source) for name, source in sources.items()}
    tokenizer = load_tokenizer(config.base_model, trust_remote_code=trust_remote_code)
    config = _as_long_as_its_start(config, tokenizer)
    apart = is_encoder_decoder(config.base_model, trust_remote_code=trust_remote_code)
    shape = answered_apart if apart else _as_it_is
    context = context_length(config.base_model, trust_remote_code=trust_remote_code)
    tasks = tuple(
        _task(config, number, name, splits, tokenizer, shape, context)
        for number, (name, splits) in enumerate(loaded.items())
    )
    vocabulary = vocabulary_size(config.base_model, trust_remote_code=trust_remote_code)
    for task in tasks:
        rows = [*task.train, *task.validation]
        rejected = [row.rejected for row in rows if row.rejected is not None]
        check_vocabulary([(row.where, row.ids) for row in (*rows, *rejected)], tokenizer, vocabulary)
    gpu = pick_device(config.device)[0].startswith("cuda")
    takes_kv = not carries_states(config.base_model, trust_remote_code=trust_remote_code)
    # rows whose answers are generated hold no demonstrations
    room = context // 4 if takes_kv and not apart and not config.objective.generates else 0
    by_task, classes = [task.train for task in tasks], [task.classes for task in tasks]
    facts = auto.TaskStats.of(by_task, classes, room, gpu=gpu, takes_kv=takes_kv)
    given = config
    config, choices = auto.choose(given, facts)
    if config.drop_long and not apart:
        tasks = tuple(_fitting(task, config, tokenizer, context) for task in tasks)
    return PreparedTraining(config, facts, choices, tasks, folder, run, given, reward)


def _as_long_as_its_start(config: Config, tokenizer: Tokenizer) -> Config:
    """With as many virtual tokens as the soft prompt of `method.init_from`, unless the user set their number.

    Raises StoreError if there is no such soft prompt.
    """
    method = config.method
    if method.init != "prompt" or not method.init_from or "n_tokens" in method.model_fields_set:
        return config
    card = store.load_card(store.find(method.init_from))
    run_first = method_spec(method.name).trains_kv and not form_class(card.form).begins_the_sequence
    lead = len(bos_ids(tokenizer)) if run_first else 0
    length = card.n_tokens + lead  # keys and values of an embedding prompt begin with those of BOS
    return config.model_copy(update={"method": method.model_copy(update={"n_tokens": length})})


def _part_names(config: Config, tasks: Sequence[str]) -> list[str]:
    return list(method_spec(config.method.name).parts(config.method, tasks))


def check_outputs_free(prepared: PreparedTraining, overwrite: bool) -> None:
    """Raise StoreError if an artifact of the run may not be written."""
    for part in prepared.part_names:
        store.check_free(prepared.folder_of(part), overwrite)


def _folder_of(folder: Path, part: str) -> Path:
    return folder.with_name(f"{folder.name}.{part}") if part else folder


def _check_names(config: Config, tasks: Sequence[str], folder: Path, overwrite: bool) -> None:
    """Refuse names of tasks that cannot be part of a name, and names that are taken."""
    for name in tasks:
        if name and not _TASK_NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is not a usable name for a task", where="data", expected="a-z 0-9 _ -")
    for part in _part_names(config, tasks):
        store.check_free(_folder_of(folder, part), overwrite)
    spec = method_spec(config.method.name)
    if spec.save is not None:
        store.check_free(folder, overwrite)
    if spec.one_task and len(tasks) > 1:
        raise ConfigError(f"{spec.name} learns one task", where="data", got=", ".join(tasks), hint="one --data")


def _as_it_is(template: Template) -> Template:
    return template


def _sources(config: Config, data: RowSource | None) -> dict[str, RowSource]:
    """Where the rows of each task come from; "" is the only task's name."""
    if data is not None:
        return {"": data}
    assert config.data is not None
    return dict(config.data) if isinstance(config.data, dict) else {"": config.data}


def _of_task(setting: str | dict[str, str] | None, task: str) -> str | None:
    """A setting that is one for all tasks, or one for each."""
    return setting.get(task) if isinstance(setting, dict) else setting


def _splits(config: Config, name: str, source: RowSource) -> Splits:
    """The rows of one task."""
    return load_splits(source, seed=config.train.seed, options=_read_options(config, name))


def _read_options(config: Config, name: str) -> ReadOptions:
    return ReadOptions(
        parse_columns(_of_task(config.columns, name)),
        config.pieces,
        config.learn_end,
        pairs=config.objective.name == "dpo",
        prompts=config.objective.generates,
    )


def _encode(config: Config, records: Sequence[Record], template: Template, tokenizer: Tokenizer) -> list[Example]:
    """The rows as the objective learns them: answers, pairs of answers, or prompts alone."""
    encoders = {"next-token": encode_rows, "dpo": encode_pairs, "grpo": encode_prompts}
    return encoders[config.objective.name](records, template, tokenizer)


def _task(
    config: Config,
    number: int,
    name: str,
    splits: Splits,
    tokenizer: Tokenizer,
    shape: Callable[[Template], Template],
    context: int,
) -> PreparedTask:
    """Tokenize the rows of one task; `shape` adapts a template to the model."""
    frame_parts(config.frame or PLACE)
    text = _of_task(config.template, name)
    template = shape(default_template(splits.train, tokenizer, unescaped(text) if text else None, config.chat))
    on_long = "drop" if config.drop_long else "error"

    rows = [_encode(config, records, template, tokenizer) for records in (splits.train, splits.validation)]
    kept = [within(part, config.max_length, on_long, context) for part in rows]
    dropped = sum(map(len, rows)) - sum(map(len, kept))
    train, validation = ([replace(row, task=number) for row in part] if number else part for part in kept)
    notes, reading = row_notes(splits.train, template, tokenizer, len(rows[0])), _read_options(config, name)
    if same := same_answers(rows[0]):
        notes.append(f"{same} of {len(rows[0])} rows have the same answer twice, which teaches nothing")
    return PreparedTask(
        name,
        splits,
        template,
        train,
        validation,
        dropped,
        config.max_length,
        reading,
        notes=tuple(notes),
        frame=config.frame or "",
    )


def _fitting(task: PreparedTask, config: Config, tokenizer: Tokenizer, context: int) -> PreparedTask:
    """The task without the rows that do not fit in the model's context after the prompt; those are counted.

    Raises DataError if no training row fits.
    """
    before = encode(task.frame + head(task.template, tokenizer), tokenizer)
    begins = form_class("kv").begins_the_sequence and method_spec(config.method.name).trains_kv
    room = context - config.method.n_tokens - len(before) - (0 if begins else len(bos_ids(tokenizer)))
    room -= config.objective.answer_room
    train, validation = ([row for row in rows if row.longest <= room] for rows in (task.train, task.validation))
    if not train:
        shortest = min(row.longest for row in task.train)
        raise DataError(
            "no row fits in the model's context after the prompt",
            expected=f"rows of at most {max(0, room)} tokens",
            got=f"at least {shortest} tokens",
            hint="fewer --n-tokens, or a model with a longer context",
        )
    left_out = len(task.train) + len(task.validation) - len(train) - len(validation)
    return replace(
        task, train=train, validation=validation, dropped=task.dropped + left_out, longest=min(room, task.longest)
    )
