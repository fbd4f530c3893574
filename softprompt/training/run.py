"""From settings to finished soft prompts: base model loaded, prompts trained, artifacts written.

    prepared = prepare(config)        # every row checked; no model weights touched
    outcome = fit(prepared)           # trains and writes prompts/NAME

`softprompt train` is these two calls with a progress bar.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import PartialState

from softprompt.data.splits import data_digest
from softprompt.data.template import Template
from softprompt.editing.compose import select
from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.formatting.context import check_context
from softprompt.formatting.formatted_prompt import framed_layout, layout_ids
from softprompt.methods.base import Method, MethodContext, Start
from softprompt.methods.config import Init
from softprompt.methods.initializers import initial_prompt
from softprompt.methods.legacy import legacy_dump
from softprompt.methods.registry import build_method, method_spec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import check_fits, size_of
from softprompt.prompts.forms import prompt_digest as prompt_digest
from softprompt.training import artifacts
from softprompt.training.base_model import load_base_model
from softprompt.training.batched_losses import validation_losses
from softprompt.training.config import Config
from softprompt.training.events import Event
from softprompt.training.expectation import validation_share
from softprompt.training.initialization import training_start
from softprompt.training.loop import train
from softprompt.training.objective import Objective
from softprompt.training.preferences import PreferenceObjective
from softprompt.training.prepare import PreparedTask, PreparedTraining, check_outputs_free, prepare
from softprompt.training.recorder import RunRecorder, record_events
from softprompt.training.reference import BaseReference, StartReference
from softprompt.training.result import Result
from softprompt.training.resume import explained_refusal
from softprompt.training.rewards import RewardObjective
from softprompt.training.speed import on_this_machine
from softprompt.training.trial import Task, Trial

__all__ = ["BuiltTrial", "FitResult", "PreparedTraining", "build_trial", "fit", "prepare", "recording"]

_BEST_OF: tuple[Init, ...] = ("text", "selected", "labels", "vocab", "demonstrations")  # tried by init "best"


@dataclass(frozen=True)
class FitResult:
    """Result of a training run.

    Attributes:
        result: its steps and losses.
        saved: folder and card of every soft prompt; none if a signal ended the run (then `--resume` goes on).
        bytes: size of their tensors.
    """

    result: Result
    run: Path
    saved: tuple[tuple[Path, Card], ...] = ()
    bytes: int = 0

    @property
    def folder(self) -> Path | None:
        """Of the first soft prompt, if the run came to its end."""
        return self.saved[0][0] if self.saved else None

    @property
    def card(self) -> Card:
        """Of the first soft prompt."""
        return self.saved[0][1]


@dataclass(frozen=True)
class BuiltTrial:
    """A trial that is ready to be trained.

    Attributes:
        prepared: its settings and rows, with the initialization that was used.
        init_losses: mean validation loss of each initialization, if several were tried.
    """

    prepared: PreparedTraining
    trial: Trial
    init_losses: dict[str, float] = field(default_factory=dict)


def fit(
    prepared: PreparedTraining,
    lm: FrozenLM | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    trust_remote_code: bool = False,
    report: Callable[[Event], None] = lambda event: None,
    on_validation: Callable[[Trial], None] = lambda trial: None,
) -> FitResult:
    """Train and write the artifacts.

    Args:
        lm: the base model, if it is loaded already.
        report: called with every event, which also goes to metrics.jsonl.
        on_validation: as in `train`.

    Raises:
        what `load_model`, `train` and `store.save` raise.
    """
    config, run = prepared.config, prepared.run
    if lm is None:
        lm = load_base_model(config, fsdp=config.fsdp, trust_remote_code=trust_remote_code)
    check_outputs_free(prepared, overwrite)
    begin = time.monotonic()
    if config.train.minutes is not None:
        prepared = on_this_machine(prepared, lm, resume=resume)
    built = build_trial(prepared, lm, progress=lambda share: report(Event("fit", 0, {"progress": share})))
    prepared, trial = built.prepared, built.trial
    trial.state.init_seconds = time.monotonic() - begin
    n_validation = sum(map(len, trial.validation_rows))
    trial.state.validation_share = validation_share(prepared.config, prepared.facts, n_validation)
    if built.init_losses:
        report(Event("init", 0, built.init_losses))
    processes = PartialState(cpu=lm.device.type == "cpu")
    recorded = record_events(recording(prepared), processes.is_main_process, resume, report)
    with explained_refusal(run, prepared.config), recorded as everywhere:
        (result,) = train(lm, [trial], run, resume=resume, report=everywhere, on_validation=on_validation)
    if result.interrupted:
        return FitResult(result, run)
    saved = save_run(prepared, lm, trial, result, overwrite=overwrite) if processes.is_main_process else []
    processes.wait_for_everyone()
    return FitResult(result, run, tuple(saved), sum(map(size_of, result.prompts)))


def recording(prepared: PreparedTraining) -> RunRecorder:
    """Where the events of a run go."""
    config = prepared.config
    return RunRecorder(prepared.run, prepared.folder.name, config, config.train.track, prepared.facts.pace)


def save_run(
    prepared: PreparedTraining, lm: FrozenLM, trial: Trial, result: Result, *, overwrite: bool
) -> list[tuple[Path, Card]]:
    """Write the artifacts of a finished trial and remove the run's checkpoints."""
    saved = artifacts.write_part(prepared, lm, result, trial=trial.name, overwrite=overwrite)
    spec = method_spec(prepared.config.method.name)
    if spec.save is not None:
        assert isinstance(trial.learner, Method)
        spec.save(trial.learner, prepared.folder, [folder.name for folder, _ in saved], overwrite)
    for checkpoint in prepared.run.glob("checkpoint-*"):  # the log stays
        shutil.rmtree(checkpoint, ignore_errors=True)
    return saved


def build_trial(
    prepared: PreparedTraining,
    lm: FrozenLM,
    name: str = "",
    progress: Callable[[float], None] = lambda share: None,
) -> BuiltTrial:
    """The method at its start, with its rows and settings.

    Init "best" tries several starts on the validation rows, and the returned settings name the best one. If `auto`
    chose an initialization that this model or data cannot use, it falls back to text, and the fallback is reported like
    the choice.

    Args:
        progress: called with the share of the start's fit that is done.

    Raises:
        ConfigError: settings that do not fit each other.
        GeometryError: a prompt that the base model cannot take.
        DataError: rows that do not fit in the model's context after it.
        StoreError, WrongBaseError: a soft prompt that the settings name cannot be used.
    """
    if prepared.config.method.init != "best":
        try:
            return BuiltTrial(prepared, _build_trial(prepared, lm, name, progress))
        except (ConfigError, UnsupportedModelError):  # keys that cannot move, no room for a demonstration
            if not any(choice.setting == "method.init" for choice in prepared.choices):
                raise
        return _best_of(("text",), prepared, lm, name)
    return _best_of(_BEST_OF, prepared, lm, name)


def _best_of(inits: Sequence[Init], prepared: PreparedTraining, lm: FrozenLM, name: str) -> BuiltTrial:
    """The start with the lowest validation loss; those that this model or data cannot use are left out.

    Raises what the first one raises.
    """
    made: dict[str, tuple[PreparedTraining, Trial]] = {}
    for init in inits:
        try:
            variant = _with_init(prepared, init)
            made[init] = variant, _build_trial(variant, lm, name)
        except (ConfigError, UnsupportedModelError):  # no labels, no room for a demonstration, keys that cannot move
            if init == inits[0]:
                raise
    losses = {init: validation_losses(lm, trial) for init, (_, trial) in made.items()}
    means = {init: sum(by_task) / max(1, len(by_task)) for init, by_task in losses.items()}
    return BuiltTrial(*made[min(means, key=means.__getitem__)], means)


def _with_init(prepared: PreparedTraining, init: Init) -> PreparedTraining:
    method = prepared.config.method.model_copy(update={"init": init})
    return replace(prepared, config=prepared.config.model_copy(update={"method": method}))


def _build_trial(
    prepared: PreparedTraining,
    lm: FrozenLM,
    trial_name: str,
    progress: Callable[[float], None] = lambda share: None,
) -> Trial:
    """The method at the start that the settings describe."""
    config = prepared.config
    loaded = {name: store.load(name, lm.geometry)[0] for name in config.method.prompt_names()}
    start, masked_spans = training_start(prepared, lm, loaded, progress)
    if config.method.kept:
        start, masked_spans = _rewound(config, lm, start), {}
    context = MethodContext(config.method, loaded, len(prepared.tasks))
    method = build_method(config.method.name, lm, start, context)
    prompts = method.freeze()
    for prompt in prompts:
        check_fits(prompt, lm.geometry)
    digests = {name: prompt_digest(prompt) for name, prompt in loaded.items()}
    identity = [legacy_dump(config.method), config.max_length, digests]
    room = config.objective.answer_room
    tasks = [
        _task(task, lm, prompts[0], identity, masked_spans if len(prepared.tasks) == 1 else {}, room)
        for task in prepared.tasks
    ]
    teachers = [loaded[teacher] for teacher in config.method.teachers]
    if teachers and len(teachers) != len(tasks):
        raise ConfigError(
            "each task needs a teacher", where="method.teachers", expected=f"{len(tasks)} names", got=len(teachers)
        )
    objective = _objective(prepared, lm, method, tasks)
    return Trial(method, tasks, config.train, lm.device, trial_name, teachers, objective)


def _objective(prepared: PreparedTraining, lm: FrozenLM, method: Method, tasks: Sequence[Task]) -> Objective | None:
    """The objective of the settings; None for next tokens. Raises ConfigError for teachers beside another one."""
    settings, templates = prepared.config.objective, [task.template for task in prepared.tasks]
    if settings.name == "next-token":
        return None
    if prepared.config.method.teachers:
        what = f"teachers show the next token of given answers, and {settings.name} learns from other rows"
        raise ConfigError(what, where="method.teachers", hint="--objective next-token, or no teachers")
    start = settings.reference == "start"
    reference = StartReference(lm, method, tasks) if start else BaseReference(lm, templates)
    if prepared.reward is None:
        return PreferenceObjective(settings, reference)
    return RewardObjective(settings, reference, prepared.reward, templates)


def _rewound(config: Config, lm: FrozenLM, start: Start) -> Start:
    """The start with the virtual tokens that pruning kept, as they were before training."""
    kept, form = config.method.kept, method_spec(config.method.name).start_form
    if min(kept) < 0 or max(kept) >= start.n_tokens or len(set(kept)) < len(kept):
        expected = f"different numbers from 0 to {start.n_tokens - 1}"
        raise ConfigError("no such virtual tokens to keep", where="method.kept", expected=expected, got=kept)
    whole = initial_prompt(lm, start, form)
    return replace(start, init="prompt", prompt=select(whole, sorted(kept), lm), n_tokens=len(kept))


def _task(
    task: PreparedTask,
    lm: FrozenLM,
    prompt: SoftPrompt,
    identity: Sequence[object],
    masked_spans: Mapping[str, tuple[int, int]],
    room_of_answer: int,
) -> Task:
    """The rows of a task with the layout that its prompt will be saved with; DataError if one is too long."""
    lead, follow = layout_ids(lm, framed_layout(lm, task.template, prompt.form, task.frame))
    around = len(lead) + prompt.n_tokens + len(follow) + lm.beside_text(room_of_answer)
    lengths = [(row.where, row.longest, around) for row in (*task.train, *task.validation)]
    room = lm.geometry.max_positions - around
    drop = f"--max-length {room} --drop-long leaves such rows out; " if room >= 2 else ""
    check_context(lm, lengths, f"{drop}fewer --n-tokens make room")
    # The digests say what a template takes from conversations; without it, runs of softprompt 0.1 can be resumed.
    template = task.template if task.template.text else Template(task.template.kind)
    shared = [data_digest(task.splits.train), data_digest(task.splits.validation), template.to_dict(), *identity]
    rejected = [record.rejected for record in (*task.splits.train, *task.splits.validation) if record.rejected]
    shared += [data_digest(rejected)] if rejected else []
    whole = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
    rows = [
        replace(row, masked_span=masked_spans[row.where]) if row.where in masked_spans else row for row in task.train
    ]
    return Task(rows, task.validation, lead, follow, whole, task.name)
