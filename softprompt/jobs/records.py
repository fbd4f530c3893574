"""The rows of the jobs' database, as values that do not change: files, jobs, events, checkpoints, quotas."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Generic, Literal, TypeAlias, TypeVar

from softprompt.errors import ConfigError
from softprompt.json_types import JSON, JSONObject

Status: TypeAlias = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
Level: TypeAlias = Literal["info", "warn", "error"]
EventType: TypeAlias = Literal["message", "metrics"]
Auto: TypeAlias = Literal["auto"]
TuningMethod: TypeAlias = Literal["supervised", "dpo"]

FINISHED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")
RESULTS = "fine-tune-results"  # the purpose of files that jobs write
_SLUG_CHARS = 36  # of the suffix in a prompt's name, which has at most 64 characters
_ID_CHARS = 12  # of the job's id in names of models and prompts

T = TypeVar("T")


@dataclass(frozen=True)
class Quotas:
    """Maximum values of one owner; 0 is no maximum.

    Attributes:
        file_bytes: bytes of one file.
        stored_bytes: bytes of all files.
        stored_files: number of files.
        file_rows: rows of one file.
        queued_jobs: jobs that wait.
        running_jobs: jobs that run at a time; further ones wait.
        job_minutes: training time of a job; one that takes longer fails, and its checkpoints stay.
        auto_minutes: training time of a job that leaves its length to the recipe; it is fitted into them.
    """

    file_bytes: int = 64 * 2**20
    stored_bytes: int = 2**30
    stored_files: int = 1000
    file_rows: int = 200_000
    queued_jobs: int = 100
    running_jobs: int = 4
    job_minutes: int = 24 * 60
    auto_minutes: int = 3

    def __post_init__(self) -> None:
        for each in fields(self):
            if (got := getattr(self, each.name)) < 0:
                raise ConfigError("a limit is out of range", where=each.name, expected=">= 0", got=got)


@dataclass(frozen=True)
class JobBase:
    """The base model that the jobs of a store train on.

    Attributes:
        name: what requests call it.
        model: what it is loaded from: a Hub id, a folder, a GGUF file or a known short name.
        adapter: folder of a PEFT adapter that is merged into it; "" is none.
        fingerprint: of the loaded weights; "" is not checked.
        prompts: folder that finished soft prompts go to.
        dtype, load_in: as in the settings of training; "" is no quantization.
        device: of the workers beside the server, which previews of jobs suppose.
    """

    name: str
    model: str
    prompts: str
    adapter: str = ""
    fingerprint: str = ""
    dtype: str = "auto"
    load_in: str = ""
    device: str = "auto"


@dataclass(frozen=True)
class FileRecord:
    """An uploaded or written file.

    Attributes:
        owner: id of the key that it belongs to.
        created_at: in seconds since 1970, as all times here.
        rows: number of rows of data; 0 of a file that has none.
    """

    id: str
    owner: str
    purpose: str
    filename: str
    bytes: int
    sha256: str
    created_at: int
    status: Literal["uploaded", "processed", "error"]
    rows: int


@dataclass(frozen=True)
class Hyperparameters:
    """OpenAI's hyperparameters; "auto" is the choice of the recipe.

    Attributes:
        learning_rate_multiplier: factor of the learning rate that the recipe would choose.
        beta: of the method dpo; None of supervised training.
    """

    n_epochs: int | float | Auto = "auto"
    batch_size: int | Auto = "auto"
    learning_rate_multiplier: float | Auto = "auto"
    beta: float | Auto | None = None


@dataclass(frozen=True)
class DistillRequest:
    """A text to distill into the soft prompt.

    Attributes:
        file: id of the file that holds the text. A text in the request is stored as a file first.
        mode: "text" fits in the model's context; "document" is read in chunks.
    """

    file: str
    mode: Literal["text", "document"] = "text"


@dataclass(frozen=True)
class SoftPromptRequest:
    """Settings of a job beyond OpenAI's; None is the default.

    Attributes:
        method: a name of `softprompt train --method`.
        n_tokens: virtual tokens.
        minutes: training time.
        most_minutes: training time at most, of a job that leaves its length to the recipe; the store sets it.
        distill: the text of a distillation; then `training_file` may be empty, or holds its queries.
    """

    method: str | None = None
    n_tokens: int | None = None
    minutes: float | None = None
    distill: DistillRequest | None = None
    most_minutes: float | None = None


@dataclass(frozen=True)
class NewJob:
    """A job to create.

    Attributes:
        model: name of the base model, as in `JobBase.name`.
        training_file: id of a file; "" of a distillation without queries of the user.
        init_prompt: name of a soft prompt in the prompts folder to go on from.
        suffix: free text of at most 64 characters, part of the model's name.
        method: OpenAI's kind of training.
    """

    owner: str
    model: str
    training_file: str
    validation_file: str | None = None
    init_prompt: str | None = None
    suffix: str = ""
    seed: int = 0
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    method: TuningMethod = "supervised"
    soft_prompt: SoftPromptRequest = field(default_factory=SoftPromptRequest)
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class JobFailure:
    """Why a job failed, in words for its owner: no path of the server, no traceback."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True)
class JobRecord:
    """A job.

    Attributes:
        training_sha256, validation_sha256, text_sha256: contents of the files when the job was made; "" is none.
            A file that is deleted afterwards does not stop the job.
        resolved: the hyperparameters that were used, once they are known.
        status: a paused job is "queued", or "running" until its worker has saved a checkpoint.
        paused: whether it waits for `resume`.
        cancel_requested: a running job ends within a training step.
        prompt: name in the prompts folder of the soft prompt that it makes, or will make.
        fine_tuned_model: what requests call it; None until it is complete.
        trained_tokens: text tokens that the training has read; None until the job has ended.
        step: optimizer steps up to the newest checkpoint.
        attempt: how often a worker has taken it.
        crashes: workers that died since its last progress.
        worker: the worker that has it, or had it last.
        lease_until: until when it is that worker's.
    """

    id: str
    owner: str
    created_at: int
    started_at: int | None
    finished_at: int | None
    model: str
    init_prompt: str | None
    training_file: str
    validation_file: str | None
    training_sha256: str
    validation_sha256: str
    text_sha256: str
    suffix: str
    seed: int
    hyperparameters: Hyperparameters
    resolved: Hyperparameters | None
    method: TuningMethod
    soft_prompt: SoftPromptRequest
    metadata: Mapping[str, str]
    status: Status
    paused: bool
    cancel_requested: bool
    error: JobFailure | None
    prompt: str
    fine_tuned_model: str | None
    trained_tokens: int | None
    estimated_finish: int | None
    result_files: tuple[str, ...]
    step: int
    attempt: int
    crashes: int
    worker: str
    lease_until: float

    @property
    def is_finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in FINISHED

    @property
    def model_name(self) -> str:
        """What requests will call the soft prompt: ft:BASE:SUFFIX:ID."""
        return f"ft:{self.model}:{self.suffix}:{self.id.rpartition('-')[2][:_ID_CHARS]}"


@dataclass(frozen=True)
class JobEvent:
    """A line of a job's history.

    Attributes:
        number: 1, 2, … within the job.
        data: numbers of an event of type "metrics"; None of others, or what a message is about.
    """

    job: str
    number: int
    created_at: int
    level: Level
    type: EventType
    message: str
    data: JSONObject | None = None

    @property
    def id(self) -> str:
        """Unique id: `event_number` is its inverse."""
        return f"ftevent-{self.job.rpartition('-')[2]}-{self.number}"


@dataclass(frozen=True)
class JobCheckpoint:
    """A soft prompt as it was at a validation.

    Attributes:
        prompt: its name in the prompts folder.
        fine_tuned_model_checkpoint: what requests call it.
        metrics: step, train_loss, valid_loss, … as OpenAI names them.
    """

    id: str
    job: str
    created_at: int
    step_number: int
    prompt: str
    fine_tuned_model_checkpoint: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a listing.

    Attributes:
        has_more: whether further items follow.
    """

    items: tuple[T, ...]
    has_more: bool


@dataclass(frozen=True)
class ModelOwner:
    """A finished soft prompt that a model's name stands for.

    Attributes:
        model: the full name, ft:BASE:SUFFIX:ID.
        prompt: name in the prompts folder.
    """

    model: str
    prompt: str
    owner: str
    job: str
    created_at: int


def prompt_name(suffix: str, job_id: str) -> str:
    """The name in the prompts folder of a job's soft prompt: ft-SUFFIX-ID, of a-z 0-9 . _ - only."""
    slug = re.sub(r"[^a-z0-9._]+", "-", suffix.lower()).strip("-._")[:_SLUG_CHARS].strip("-._")
    return "-".join(filter(None, ["ft", slug, job_id.rpartition("-")[2][:_ID_CHARS]]))


def event_number(event_id: str) -> int | None:
    """The number in an event's id; None if it is no event's id."""
    number = event_id.rpartition("-")[2]
    return int(number) if event_id.startswith("ftevent-") and number.isdecimal() and len(number) < 16 else None


def plain(value: Hyperparameters | SoftPromptRequest | JobFailure | JobBase | Quotas) -> dict[str, JSON]:
    """A record as JSON data, without what is None."""
    return {key: each for key, each in asdict(value).items() if each is not None}
