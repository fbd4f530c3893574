"""Files, fine-tuning jobs, their events and checkpoints as OpenAI's objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import (
    Literal,
    NotRequired,  # pydantic reads it, and wants this one before Python 3.12
    TypeVar,
)

from typing_extensions import TypedDict

from softprompt.jobs.records import FileRecord, Hyperparameters, JobCheckpoint, JobEvent, JobRecord, Page, TuningMethod
from softprompt.json_types import JSONObject

_Item = TypeVar("_Item")
_Info = TypeVar("_Info")


class FileInfo(TypedDict):
    """A file. `status` and `status_details` are deprecated in OpenAI's API: what is stored was checked."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["fine-tune", "fine-tune-results"]
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None


class FileDeletion(TypedDict):
    """A file that is deleted."""

    id: str
    object: Literal["file"]
    deleted: bool


class FileList(TypedDict):
    """A page of files."""

    object: Literal["list"]
    data: list[FileInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


class HyperparameterInfo(TypedDict):
    """Hyperparameters: as they were given, and as the recipe chose them once the job knows."""

    n_epochs: int | Literal["auto"]
    batch_size: int | Literal["auto"]
    learning_rate_multiplier: float | Literal["auto"]


class SupervisedInfo(TypedDict):
    """The settings of supervised training."""

    hyperparameters: HyperparameterInfo


class PreferenceHyperparameterInfo(HyperparameterInfo):
    """Hyperparameters of training on pairs of answers."""

    beta: float | Literal["auto"]


class PreferenceInfo(TypedDict):
    """The settings of training on pairs of answers."""

    hyperparameters: PreferenceHyperparameterInfo


class MethodInfo(TypedDict):
    """The kind of training, with the settings of that kind."""

    type: TuningMethod
    supervised: NotRequired[SupervisedInfo]
    dpo: NotRequired[PreferenceInfo]


class JobErrorInfo(TypedDict):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class DistillInfo(TypedDict):
    """The text that a job distills."""

    file: str
    mode: Literal["text", "document"]


class JobPromptInfo(TypedDict):
    """The settings of the soft prompt; null is the recipe's choice."""

    method: str | None
    n_tokens: int | None
    minutes: float | None
    distill: DistillInfo | None


class FineTuningJobInfo(TypedDict):
    """A fine-tuning job. Beyond OpenAI's: `paused`, whose status stays `queued` or `running`, and `soft_prompt`."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
    paused: bool
    training_file: str
    validation_file: str | None
    result_files: list[str]
    hyperparameters: HyperparameterInfo
    method: MethodInfo
    seed: int
    trained_tokens: int | None
    metadata: dict[str, str] | None
    integrations: list[object]
    error: JobErrorInfo | None
    user_provided_suffix: str | None
    soft_prompt: JobPromptInfo


class JobList(TypedDict):
    """A page of jobs, newest first."""

    object: Literal["list"]
    data: list[FineTuningJobInfo]
    has_more: bool


class JobEventInfo(TypedDict):
    """An event of a job."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, object] | None


class JobEventList(TypedDict):
    """A page of events, newest first."""

    object: Literal["list"]
    data: list[JobEventInfo]
    has_more: bool


class CheckpointInfo(TypedDict):
    """A checkpoint that requests can name."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float]


class CheckpointList(TypedDict):
    """A page of checkpoints, newest first."""

    object: Literal["list"]
    data: list[CheckpointInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


def file_info(file: FileRecord) -> FileInfo:
    """A file as OpenAI's object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": None,
        "filename": file.filename,
        "purpose": "fine-tune" if file.purpose == "fine-tune" else "fine-tune-results",
        "status": file.status,
        "status_details": None,
    }


def job_info(job: JobRecord) -> FineTuningJobInfo:
    """A job as OpenAI's object."""
    hyperparameters = _hyperparameters(job.resolved or job.hyperparameters)
    failure, settings = job.error, job.soft_prompt
    distill = settings.distill
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "estimated_finish": job.estimated_finish,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": job.owner,
        "status": job.status,
        "paused": job.paused,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": list(job.result_files),
        "hyperparameters": hyperparameters,
        "method": _method(job),
        "seed": job.seed,
        "trained_tokens": job.trained_tokens,
        "metadata": dict(job.metadata) or None,
        "integrations": [],
        "error": None
        if failure is None
        else {"code": failure.code, "message": failure.message, "param": failure.param},
        "user_provided_suffix": job.suffix or None,
        "soft_prompt": {
            "method": settings.method,
            "n_tokens": settings.n_tokens,
            "minutes": settings.most_minutes if settings.minutes is None else settings.minutes,
            "distill": None if distill is None else {"file": distill.file, "mode": distill.mode},
        },
    }


def _method(job: JobRecord) -> MethodInfo:
    used = job.resolved or job.hyperparameters
    hyperparameters = _hyperparameters(used)
    if job.method == "supervised":
        return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    beta = "auto" if used.beta is None else used.beta
    return {"type": "dpo", "dpo": {"hyperparameters": {**hyperparameters, "beta": beta}}}


def event_info(event: JobEvent) -> JobEventInfo:
    """An event as OpenAI's object."""
    data: JSONObject | None = event.data
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": None if data is None else dict(data),
    }


def checkpoint_info(checkpoint: JobCheckpoint) -> CheckpointInfo:
    """A checkpoint as OpenAI's object."""
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": checkpoint.fine_tuned_model_checkpoint,
        "fine_tuning_job_id": checkpoint.job,
        "step_number": checkpoint.step_number,
        "metrics": dict(checkpoint.metrics),
    }


def page_info(page: Page[_Item], info: Callable[[_Item], _Info], ids: Sequence[str] = ()) -> dict[str, object]:
    """A page of objects as OpenAI's list; `ids` adds those of its first and last object."""
    named = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return {"object": "list", "data": [info(item) for item in page.items], "has_more": page.has_more, **named}


def _hyperparameters(given: Hyperparameters) -> HyperparameterInfo:
    epochs = given.n_epochs
    return {
        "n_epochs": "auto" if isinstance(epochs, str) else max(1, round(epochs)),
        "batch_size": given.batch_size,
        "learning_rate_multiplier": given.learning_rate_multiplier,
    }
