"""Tells a job's history while it trains: metrics, checkpoints, the estimated end; and writes the result file."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from softprompt.data.sampler import sample
from softprompt.data.tokenize import Example
from softprompt.errors import JobError
from softprompt.jobs.comparison import COMPARE_S
from softprompt.jobs.plan import Prepared, train_settings
from softprompt.jobs.queue import JobQueue
from softprompt.jobs.records import JobCheckpoint, JobRecord
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.chunked import CHUNK
from softprompt.objectives.next_token import supervised
from softprompt.prefix.packing import by_tokens
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts import store
from softprompt.training.artifacts import describe, prompt_parts
from softprompt.training.batched_losses import EVAL_TOKENS
from softprompt.training.events import Event
from softprompt.training.prepare import PreparedTraining
from softprompt.training.result import Result
from softprompt.training.run_log import read_log
from softprompt.training.trial import Trial

RESULT_COLUMNS = (
    "step",
    "train_loss",
    "train_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
)  # of the result file
TIME_LIMIT = "the job has trained for longer than a job may"
_TRAIN_ROWS = 32  # of which the accuracy is computed at each validation, at most
_EVERY_S = 1.0  # between two events of the same kind
_PHASES = {"study": "Writing queries", "answers": "Answering queries", "fit": "Fitting the start"}


class Reporter:
    """Turns the events of a run into those of a job.

    Args:
        prompts: folder of soft prompts, for checkpoints.
    """

    def __init__(self, queue: JobQueue, job: JobRecord, lm: FrozenLM, prepared: Prepared, prompts: Path) -> None:
        self._queue, self._job = queue, job
        self._lm, self._prepared = lm, prepared
        self._prompts = prompts
        self._minutes = queue.store.quotas().job_minutes
        self._told = dict[str, float]()
        self._train_loss: float | None = None
        self._estimate: int | None = None

    def report(self, event: Event) -> None:
        """Tell an event. Raises JobError when the job has trained for longer than a job may."""
        if event.kind in _PHASES:
            self._phase(event)
        elif event.kind == "start" and not event.step:
            self._queue.event(self._job, "The start is ready; validating it")
        elif event.kind == "step":
            self._step(event)
        elif event.kind == "checkpoint":
            self._queue.progress(self._job, event.step, self._estimate)

    def validated(self, trial: Trial) -> None:
        """Tell a validation, and save the soft prompt as it is now as a checkpoint of the job."""
        metrics = {"step": float(trial.state.step), "valid_loss": trial.latest_loss}
        validation = [row for part in trial.sample_validation_rows() for row in part]
        metrics["valid_mean_token_accuracy"] = token_accuracy(self._lm, trial, validation)
        metrics["train_mean_token_accuracy"] = token_accuracy(
            self._lm, trial, _some_training_rows(trial, len(validation) or _TRAIN_ROWS)
        )
        if self._train_loss is not None:
            metrics["train_loss"] = self._train_loss
        message = f"Step {trial.state.step}{self._total()}: validation loss={trial.latest_loss:.4f}"
        self._queue.event(self._job, message, kind="metrics", data=dict(metrics))
        if trial.state.step and isinstance(self._prepared, PreparedTraining):
            name = f"{self._job.prompt}-s{trial.state.step}"
            self._save(self._prepared, trial, self._prompts / name)
            self._queue.checkpoint(self._job, trial.state.step, name, metrics)

    def _save(self, prepared: PreparedTraining, trial: Trial, folder: Path) -> None:
        """Write the soft prompt of this step; a resumed run has written the same before."""
        if (folder / store.CARD).is_file():
            return
        state = trial.state
        result = Result(trial.learner.freeze(), state.step, 0.0, "checkpoint", trial.latest_loss, state.history)
        (part,) = prompt_parts(prepared, result.prompts)
        store.save(folder, part.prompt, describe(prepared, self._lm, part, result, folder.name))

    def _phase(self, event: Event) -> None:
        share = event.numbers["progress"]
        if share >= 1 or self._is_time(event.kind):
            message = f"{_PHASES[event.kind]}: {share:.0%}"
            self._queue.event(self._job, message, data={"phase": event.kind, "progress": share})

    def _step(self, event: Event) -> None:
        numbers = event.numbers
        self._train_loss = numbers["loss"]
        progress, elapsed = numbers["progress"], numbers["elapsed"]
        if progress > 0:
            self._estimate = self._queue.store.time() + round(elapsed * (1 - progress) / progress + COMPARE_S)
        if self._minutes and elapsed > self._minutes * 60:
            raise JobError(TIME_LIMIT, expected=f"{self._minutes} minutes")
        if self._is_time("step"):
            message = f"Step {event.step}{self._total()}: training loss={numbers['loss']:.4f}"
            data = {"step": event.step, "train_loss": numbers["loss"], "learning_rate": numbers["lr"]}
            self._queue.event(self._job, message, kind="metrics", data=data | {"progress": progress})
            self._queue.progress(self._job, 0, self._estimate)

    def _is_time(self, kind: str) -> bool:
        now = time.monotonic()
        if now - self._told.get(kind, -_EVERY_S) < _EVERY_S:
            return False
        self._told[kind] = now
        return True

    def _total(self) -> str:
        """The number of all steps, if it is known."""
        steps = train_settings(self._prepared).total_steps(trained_rows(self._prepared))
        return "" if steps is None else f"/{steps}"


def trained_rows(prepared: Prepared) -> int:
    """Rows of an epoch."""
    if isinstance(prepared, PreparedTraining):
        return sum(len(task.train) for task in prepared.tasks)
    return prepared.settings.study.queries - prepared.settings.study.held_out


@torch.no_grad()
def token_accuracy(lm: FrozenLM, trial: Trial, rows: Sequence[Example]) -> float:
    """Share of the learned tokens of these rows that are the likeliest ones."""
    hits = tokens = 0
    trial.learner.eval()
    for part in by_tokens([len(row.ids) for row in rows], EVAL_TOKENS):
        batch = [rows[i] for i in part]
        prefixes, numbers = trial.prefixes(batch)
        states, targets = supervised(lm, prepare_prefixes(lm, prefixes), batch, numbers)
        for states_NH, targets_N in zip(states.split(CHUNK), targets.split(CHUNK), strict=True):
            hits += int((lm.logits(states_NH).argmax(-1) == targets_N).sum())
        tokens += len(targets)
    trial.learner.train()
    return hits / max(1, tokens)


def _some_training_rows(trial: Trial, count: int) -> list[Example]:
    """The same training rows at every validation, so many at most: as there is time to validate."""
    seed, most = trial.settings.seed, min(count, _TRAIN_ROWS)
    return [task.train[i] for task in trial.tasks for i in sample(len(task.train), most, seed)]


def trained_tokens(run: Path) -> int:
    """Text tokens that the finished run has read."""
    return round(sum(_number(line, "tokens") or 0 for line in read_log(run / "metrics.jsonl")))


def result_csv(run: Path, checkpoints: Sequence[JobCheckpoint]) -> bytes:
    """The result file: a line a step, as OpenAI writes it; accuracies and validation losses at validations."""
    losses, validations = dict[int, float](), dict[int, float]()
    for line in read_log(run / "metrics.jsonl"):
        for event, number, found in (("step", "loss", losses), ("validation", "validation_loss", validations)):
            step, value = _number(line, "step"), _number(line, number)
            if line.get("event") == event and step is not None and value is not None:
                found[int(step)] = value
    known = {each.step_number: each.metrics for each in checkpoints}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(RESULT_COLUMNS)
    for step in sorted(losses):
        metrics = known.get(step, {})
        trained, held_out = (metrics.get(f"{part}_mean_token_accuracy", "") for part in ("train", "valid"))
        writer.writerow([step, losses[step], trained, validations.get(step, ""), held_out])
    return text.getvalue().encode()


def _number(line: Mapping[str, object], key: str) -> float | None:
    value = line.get(key)
    return float(value) if isinstance(value, int | float) else None
