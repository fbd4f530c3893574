"""Runs one claimed job: files, settings, training, comparison, and the end of the job in the store."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from softprompt.distillation.config import DistillConfig
from softprompt.distillation.prepare import STUDY_SUFFIX, PreparedDistillation
from softprompt.distillation.run import distill
from softprompt.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    JobError,
    LeaseLostError,
    NonFiniteLossError,
    PromptError,
    SoftpromptError,
    StoreError,
    is_out_of_memory,
)
from softprompt.jobs.comparison import COMPARE_S, COMPARE_SHARE, compared, fidelity_words
from softprompt.jobs.monitor import Monitor, StopReason
from softprompt.jobs.plan import (
    FILE_FIELDS,
    Prepared,
    RunSettings,
    expected_run,
    job_settings,
    minutes_of,
    prepare_job,
    resolved,
)
from softprompt.jobs.queue import JobQueue
from softprompt.jobs.records import JobBase, JobFailure, JobRecord
from softprompt.jobs.reporter import TIME_LIMIT, Reporter, result_csv, trained_tokens
from softprompt.jobs.workspace import Workspace, copy_start, open_workspace, publish_prompt
from softprompt.json_types import JSONObject
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.checkpoint import latest_step
from softprompt.training.run import fit
from softprompt.training.signals import terminable

log = structlog.get_logger("softprompt.jobs")

RESULT_FILE = "step_metrics.csv"
_INTERNAL = JobFailure("internal_error", "an error in the server, whose log says more")
_CODES: tuple[tuple[type[SoftpromptError], str], ...] = (
    (DataError, "invalid_file"),
    (ConfigError, "invalid_hyperparameters"),
    (NonFiniteLossError, "training_diverged"),
    (PromptError, "invalid_model"),
    (StoreError, "storage"),
)


@dataclass(frozen=True)
class JobRunner:
    """Runs jobs on a loaded base model.

    Attributes:
        base: as the store describes it.
    """

    queue: JobQueue
    lm: FrozenLM
    base: JobBase
    device: str

    def run(self, job: JobRecord) -> bool:
        """Run a job until it ends, is given back or is lost; returns whether this worker shall go on with others.

        A mistake in the job ends it as failed. What else is raised is the worker's own trouble: the job stays claimed
        until its lease expires.
        """
        bound = log.bind(job=job.id, attempt=job.attempt)
        bound.info("job started")
        monitor = Monitor(self.queue, job)
        workspace, failure = None, None
        done = False
        try:
            with terminable(), monitor:
                workspace = open_workspace(self.queue.store.runs, self.queue.store.files.contents, job)
                done = self._train(job, workspace)
        except KeyboardInterrupt:
            bound.info("job interrupted", reason=monitor.reason)
        except SQLAlchemyError:
            raise
        except LeaseLostError:
            monitor.reason = "lost"
        except SoftpromptError as error:
            failure = self._failure(error, workspace)
        except Exception as error:
            bound.exception("job failed")
            failure = JobFailure("out_of_memory", "out of memory") if is_out_of_memory(error) else _INTERNAL
        try:
            return self._end(job, workspace, failure, done, monitor.reason)
        except LeaseLostError:
            bound.warning("job lost to another worker")
            return True

    def _end(
        self, job: JobRecord, workspace: Workspace | None, failure: JobFailure | None, done: bool, reason: StopReason
    ) -> bool:
        """Write the end of a job into the store. Raises LeaseLostError."""
        if reason == "lost":
            raise LeaseLostError("the job is another worker's now", where=job.id)
        if done and workspace is not None:
            self.queue.heartbeat(job)
            publish_prompt(workspace, Path(self.base.prompts))
            checkpoints = self.queue.store.checkpoints(job.id, None, limit=10_000).items
            results = {RESULT_FILE: result_csv(workspace.run, checkpoints)}
            self.queue.succeed(job, trained_tokens(workspace.run), results)
        elif failure is not None:
            self.queue.fail(job, failure)
        elif reason == "cancel":
            self.queue.cancelled(job)
        else:
            self.queue.release(job)
        log.info("job ended", job=job.id, status=self.queue.store.job(job.id, None).status)
        return done or failure is not None or reason != ""

    def _train(self, job: JobRecord, workspace: Workspace) -> bool:
        """Train and compare, as far as earlier attempts have not; whether the soft prompt is complete."""
        name = str(workspace.prompt)
        start = copy_start(workspace, job.init_prompt, Path(self.base.prompts)) if job.init_prompt else None
        os.environ["SOFTPROMPT_HOME"] = str(workspace.starts)  # where its name is looked up
        settings = job_settings(job, self.base, workspace.data, name, self.device, start)
        if (minutes := minutes_of(job)) is not None and not workspace.is_trained:
            self.queue.progress(job, job.step, self._finish(minutes * 60))
        if not job.step:
            self.queue.event(job, "Checking the rows and measuring the speed of this machine")
        prepared = prepare_job(job, settings, self.lm, resume=_resumable(workspace, settings))
        self.queue.resolve(job, *resolved(job, prepared))
        self._expect(job, prepared)
        began = time.monotonic()
        if not workspace.is_trained:
            try:
                story = self._run(job, prepared, resume=_resumable(workspace, settings))
            except CheckpointError as error:
                self.queue.event(job, f"The checkpoint cannot be used, the job starts anew: {error.what}", level="warn")
                story = self._run(job, prepare_job(job, settings, self.lm, resume=False), resume=False)
            if not workspace.is_trained:
                return False
            if story is not None:
                self.queue.event(job, story[0], data=story[1])
        if not isinstance(prepared, PreparedDistillation):
            try:
                self.queue.event(job, "Comparing with the base model and a text prompt")
                seconds = max(COMPARE_S, COMPARE_SHARE * (time.monotonic() - began))
                words, data = compared(prepared, self.lm, workspace.prompt, seconds)
                self.queue.event(job, words, data=data)
            except (DataError, ConfigError) as error:  # such as validation rows that do not fit behind examples
                self.queue.event(job, f"The soft prompt could not be compared: {error.what}", level="warn")
        return True

    def _expect(self, job: JobRecord, prepared: Prepared) -> None:
        """Tell when a job will end, and whether it has too little time to learn."""
        expected = expected_run(prepared)
        if expected is None or job.step:
            return
        self.queue.progress(job, 0, self._finish(expected.seconds))
        if warning := expected.warning():
            self.queue.event(job, warning, level="warn")

    def _finish(self, seconds: float) -> int:
        """The time at which so many seconds of training from now, and the comparison, will be over."""
        return self.queue.store.time() + round(seconds + COMPARE_S)

    def _run(self, job: JobRecord, prepared: Prepared, *, resume: bool) -> tuple[str, JSONObject] | None:
        """Train or distill; returns what to tell about a finished distillation."""
        reporter = Reporter(self.queue, job, self.lm, prepared, Path(self.base.prompts))
        if isinstance(prepared, PreparedDistillation):
            outcome = distill(
                prepared,
                self.lm,
                overwrite=not resume,
                resume=resume,
                report=reporter.report,
                on_validation=reporter.validated,
            )
            return None if outcome.fidelity is None else fidelity_words(outcome.fidelity)
        fit(
            prepared,
            self.lm,
            overwrite=not resume,
            resume=resume,
            report=reporter.report,
            on_validation=reporter.validated,
        )
        return None

    def _failure(self, error: SoftpromptError, workspace: Workspace | None) -> JobFailure:
        """A mistake in words for the job's owner: files by the names of the API's fields, no path of this machine."""
        parts = [error.what, *(f"{key} {value}" for key in ("expected", "got") if (value := getattr(error, key)))]
        words = "; ".join(parts) if error.where is None else f"{error.where}: {'; '.join(parts)}"
        param = None
        for name, field in FILE_FIELDS.items():
            path = name if workspace is None else str(workspace.data / name)
            if path in words:
                param = param or field
                words = words.replace(path, field)
        for folder in (workspace and workspace.folder, self.queue.store.home, Path(self.base.prompts)):
            words = words if folder is None else words.replace(f"{folder}/", "")
        if isinstance(error, JobError):
            return JobFailure("time_limit" if error.what == TIME_LIMIT else "invalid_job", words, param)
        code = next((code for kind, code in _CODES if isinstance(error, kind)), "training_failed")
        return JobFailure(code, words, param)


def _resumable(workspace: Workspace, settings: RunSettings) -> bool:
    """Whether an earlier attempt has left something to go on from."""
    study = workspace.run.with_name(workspace.run.name + STUDY_SUFFIX)
    return latest_step(workspace.run) is not None or (isinstance(settings, DistillConfig) and study.exists())
