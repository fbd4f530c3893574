"""From a job to settings of a run: OpenAI's hyperparameters and our own fields as those of training or distillation.

n_epochs                  train.epochs; "auto": as many steps as the recipe takes
batch_size                train.batch_size; "auto": the recipe's
learning_rate_multiplier  factor of the learning rate that the recipe chooses
beta                      objective.beta of the method dpo
soft_prompt               method.name, method.n_tokens, train.minutes, text or document of a distillation
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, cast

from softprompt.distillation.config import DistillConfig, resolve_distillation
from softprompt.distillation.prepare import PreparedDistillation, prepare_distillation
from softprompt.errors import ConfigError
from softprompt.jobs.records import Hyperparameters, JobBase, JobRecord, NewJob
from softprompt.methods.registry import method_spec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.schedule import default_steps
from softprompt.settings import resolve_settings
from softprompt.training.config import Config, TrainConfig
from softprompt.training.expectation import Expectation, expectation
from softprompt.training.prepare import PreparedTraining, prepare
from softprompt.training.speed import on_this_machine

RunSettings: TypeAlias = Config | DistillConfig
Prepared: TypeAlias = PreparedTraining | PreparedDistillation

SAVE_EVERY = 20  # steps between checkpoints, at most so many are trained again after a worker was lost
TRAIN_FILE = "train.jsonl"
VALIDATION_FILE = "validation.jsonl"
TEXT_FILE = "text.txt"  # of a distillation
FILE_FIELDS = {TRAIN_FILE: "training_file", VALIDATION_FILE: "validation_file", TEXT_FILE: "soft_prompt.distill"}


def job_settings(
    job: JobRecord | NewJob, base: JobBase, data: Path, name: str, device: str, start: str | None
) -> RunSettings:
    """The settings of a job's run.

    Args:
        data: the folder with `TRAIN_FILE`, and `VALIDATION_FILE` or `TEXT_FILE` if the job has them.
        name: of the soft prompt, or a path.
        start: name of the soft prompt to go on from, if the job has one.

    Raises ConfigError for fields that are out of range or contradict each other.
    """
    asked, own = job.hyperparameters, job.soft_prompt
    distill = own.distill
    values: dict[str, object] = {
        "model": base.model,
        "base_adapter": base.adapter or None,
        "dtype": base.dtype,
        "load_in": base.load_in or None,
        "device": device,
        "name": name,
        "method.name": own.method,
        "train.epochs": _given(asked.n_epochs),
        "train.batch_size": _given(asked.batch_size),
        "train.minutes": own.most_minutes if own.minutes is None else own.minutes,
        "train.seed": job.seed,
        "train.save_every": SAVE_EVERY,
    }
    if distill is not None:
        if start:
            raise ConfigError("a distillation starts from its text", where="model", got=start)
        if job.method != "supervised":
            raise ConfigError("a distillation compares no pairs of answers", where="method.type", got=job.method)
        values |= {distill.mode: str(data / TEXT_FILE), "sizes": None if own.n_tokens is None else [own.n_tokens]}
        values |= {"data": str(data / TRAIN_FILE)} if job.training_file else {}
        return _checked(resolve_distillation(values))
    values |= {"data": str(data), "method.n_tokens": own.n_tokens}
    if job.method == "dpo":
        values |= {"objective.name": "dpo", "objective.beta": _given("auto" if asked.beta is None else asked.beta)}
    if start:
        values |= {"method.init": "prompt", "method.init_from": start}
    return _checked(resolve_settings(Config, values))


def _checked(settings: RunSettings) -> RunSettings:
    """Raise ConfigError for a method that does not make exactly one prompt of its own."""
    name = settings.method.name
    if not method_spec(name).distills:
        raise ConfigError("a job trains one soft prompt of its own", where="soft_prompt.method", got=name)
    return settings


def check_new_job(new: NewJob, base: JobBase) -> None:
    """Raise ConfigError for fields that no run could take, before a worker has the job."""
    multiplier = new.hyperparameters.learning_rate_multiplier
    if multiplier != "auto" and not (math.isfinite(multiplier) and multiplier > 0):
        where = "hyperparameters.learning_rate_multiplier"
        raise ConfigError("the factor is out of range", where=where, expected="> 0", got=multiplier)
    job_settings(new, base, Path("data"), "name", "cpu", new.init_prompt)


def prepare_job(
    job: JobRecord | NewJob, settings: RunSettings, lm: FrozenLM | None = None, *, resume: bool
) -> Prepared:
    """Check rows or text, choose the recipe, and apply the factor of the learning rate.

    Args:
        lm: the base model on the machine that trains: the recipe chooses by its speed.

    Raises what `prepare` and `prepare_distillation` raise.
    """
    if isinstance(settings, DistillConfig):
        prepared = prepare_distillation(settings, overwrite=not resume, resume=resume)
        return replace(prepared, settings=_faster(job, settings))
    prepared = prepare(settings, overwrite=not resume, resume=resume)
    if lm is not None:
        prepared = on_this_machine(prepared, lm, resume=resume)
    return replace(prepared, config=_faster(job, _bounded(job, prepared)))


def train_settings(prepared: Prepared) -> TrainConfig:
    """The settings of the training loop."""
    return prepared.settings.train if isinstance(prepared, PreparedDistillation) else prepared.config.train


def expected_run(prepared: Prepared) -> Expectation | None:
    """The steps and the time of a training on this machine; None for a distillation."""
    distills = isinstance(prepared, PreparedDistillation)
    return None if distills else expectation(prepared.config, prepared.facts)


def minutes_of(job: JobRecord) -> float | None:
    """Minutes that a job may train, if it has any."""
    own = job.soft_prompt
    return own.most_minutes if own.minutes is None else own.minutes


def resolved(job: JobRecord, prepared: Prepared) -> tuple[Hyperparameters, str]:
    """The hyperparameters that are used, and the recipe's choices in words."""
    settings, multiplier = train_settings(prepared), job.hyperparameters.learning_rate_multiplier
    expected = expected_run(prepared)
    if isinstance(prepared, PreparedDistillation):
        rows, choices = prepared.settings.study.queries - prepared.settings.study.held_out, ""
    else:
        rows = sum(len(task.train) for task in prepared.tasks)
        choices = "; ".join(f"{choice.setting} = {choice.value}: {choice.why}" for choice in prepared.choices)
    steps = settings.total_steps(rows) if expected is None else expected.steps
    epochs = "auto" if steps is None else max(1, round(steps * settings.batch_size / rows))
    if steps is None and settings.minutes is None:
        raise ConfigError("a job needs an end", where="hyperparameters.n_epochs")
    words = f"Training on {rows} rows" + (f", {expected.sentence()}" if expected else "")
    words += f" ({choices})" if choices else ""
    factor = 1.0 if multiplier == "auto" else multiplier
    given = job.hyperparameters.n_epochs
    beta = (
        prepared.config.objective.strength if job.method == "dpo" and isinstance(prepared, PreparedTraining) else None
    )
    return Hyperparameters(epochs if given == "auto" else given, settings.batch_size, factor, beta), words


def _given(value: float | str) -> object:
    return None if value == "auto" else value


def _bounded(job: JobRecord | NewJob, prepared: PreparedTraining) -> Config:
    """With the usual number of steps as an end where minutes are only a maximum: a fast machine is done sooner."""
    config = prepared.config
    if job.soft_prompt.most_minutes is None:
        return config
    steps = default_steps(prepared.facts.rows, config.train.batch_size)
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})


def _faster(job: JobRecord | NewJob, settings: RunSettings) -> RunSettings:
    """With the learning rate times the job's factor."""
    factor = job.hyperparameters.learning_rate_multiplier
    if factor == "auto":
        return settings
    train = settings.train.model_copy(update={"lr": settings.train.lr * factor})
    return cast(RunSettings, settings.model_copy(update={"train": train}))
