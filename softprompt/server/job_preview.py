"""What a job would do with an uploaded file, and what a job may have: for whoever chooses its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads it, and wants this one before Python 3.12

from softprompt.errors import DataError, ModelError
from softprompt.jobs.records import DistillRequest, FileRecord, JobBase, NewJob, SoftPromptRequest, TuningMethod
from softprompt.methods.registry import method_specs
from softprompt.server.api_keys import Caller
from softprompt.server.error_responses import ApiError, from_text, invalid
from softprompt.server.fine_tuning import TRAINING, FineTuning
from softprompt.server.fine_tuning_request import (
    JOB_PARTS,
    MAX_SEED,
    FileId,
    HyperparameterFields,
    MethodFields,
    SoftPromptFields,
    check_method,
    hyperparameters_of,
)
from softprompt.server.schema import validated
from softprompt.server.strict import Strict

if TYPE_CHECKING:
    from softprompt.jobs.preview import JobPreview, Piece


class PreviewRequest(Strict):
    """Body of POST /v1/files/{file_id}/preview: what a job's body has, and how many rows to show."""

    model: str | None = None
    rows: Annotated[int, Field(ge=1, le=20)] = 3
    validation_file: FileId | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    hyperparameters: HyperparameterFields | None = None
    method: MethodFields | None = None
    soft_prompt: SoftPromptFields = SoftPromptFields()


class PieceInfo(TypedDict):
    """Tokens that follow each other and are all learned, or all not."""

    text: str
    learned: bool
    tokens: int


class AnswerInfo(TypedDict):
    """A row with one of its answers, as the model reads it."""

    tokens: int
    learned_tokens: int
    pieces: list[PieceInfo]


class RowInfo(AnswerInfo):
    """A row as the model reads it. `rejected` is the same row with the worse answer, if the two are compared."""

    line: str
    rejected: AnswerInfo | None


class SettingInfo(TypedDict):
    """A setting that a job would have, by its name in `softprompt train --print-config`, with the reason."""

    setting: str
    value: str | float | None
    why: str


class PreviewInfo(TypedDict):
    """What a job would do with a file. `read_rows` is null if the whole file was read; numbers are estimates if not.

    `method_types` are the values of `method.type` that the file's rows are for.
    """

    object: Literal["file.preview"]
    file: str
    rows: list[RowInfo]
    head: str
    train_rows: int
    validation_rows: int
    tokens: int
    learned_tokens: int
    settings: list[SettingInfo]
    notes: list[str]
    read_rows: int | None
    method_types: list[TuningMethod]


class QuotaInfo(TypedDict):
    """Quotas of a key; 0 is no maximum."""

    file_bytes: int
    stored_bytes: int
    stored_files: int
    file_rows: int
    queued_jobs: int
    running_jobs: int
    job_minutes: int


class OptionsInfo(TypedDict):
    """What jobs may have: the base model that they train on, `soft_prompt.method`, and the quotas of a key."""

    object: Literal["fine_tuning.options"]
    model: str
    methods: list[str]
    quotas: QuotaInfo


def parse_preview(body: Mapping[str, object]) -> PreviewRequest:
    """Validate a JSON body. Raises ApiError 400 with the name of the invalid field, or the reason of a refusal."""
    check_method(body)
    return validated(PreviewRequest, body, JOB_PARTS)


async def options_info(tuning: FineTuning) -> OptionsInfo:
    """What jobs may have. Raises ApiError."""
    quotas = await tuning.call(tuning.store.quotas)
    methods = sorted(name for name, spec in method_specs().items() if spec.distills)
    described: QuotaInfo = {
        "file_bytes": quotas.file_bytes,
        "stored_bytes": quotas.stored_bytes,
        "stored_files": quotas.stored_files,
        "file_rows": quotas.file_rows,
        "queued_jobs": quotas.queued_jobs,
        "running_jobs": quotas.running_jobs,
        "job_minutes": quotas.job_minutes,
    }
    return {"object": "fine_tuning.options", "model": tuning.service.name, "methods": methods, "quotas": described}


async def preview_info(tuning: FineTuning, file_id: str, request: PreviewRequest, caller: Caller) -> PreviewInfo:
    """What a job with these settings would do with a file. Raises ApiError."""
    from softprompt.jobs.preview import preview_rows, preview_text  # which know training; most routes need none of it
    from softprompt.jobs.store import bounded

    files = tuning.store.files
    file = await tuning.call(partial(files.get, file_id, caller.seen))
    if file.purpose != TRAINING:
        raise invalid(f"This is a file with the purpose {file.purpose}, not {TRAINING}.", "file_id", "invalid_file")
    init_prompt = await tuning.init_prompt(request.model or tuning.service.name, caller)
    validation = await tuning.check_file("validation_file", request.validation_file, caller, is_rows=True)
    base, path = await tuning.call(tuning.store.base), await tuning.call(partial(files.path, file))
    if base is None:
        raise ApiError(503, "The store of jobs has no base model yet.", "storage_failed", retry_after_s=5)
    new = _new_job(file, request, base, init_prompt, caller)
    held_out = None if validation is None else await tuning.call(partial(files.path, validation))
    if file.rows:
        new = bounded(new, await tuning.call(tuning.store.quotas))
        work = partial(preview_rows, new, base, path, file.rows, held_out, request.rows)
    else:
        work = partial(preview_text, new, base, path)
    try:
        found = await tuning.check(work)
    except DataError as error:
        raise from_text(error, "file_id") from error
    except ModelError as error:
        raise ApiError(503, "The base model's tokenizer cannot be read.", "storage_failed", retry_after_s=5) from error
    return _info(file.id, found)


def _new_job(
    file: FileRecord, request: PreviewRequest, base: JobBase, init_prompt: str | None, caller: Caller
) -> NewJob:
    """The job that the file would be for. Raises ApiError."""
    fields = request.soft_prompt
    distill = fields.distill
    if distill is not None and (distill.text is not None or distill.file is not None):
        raise invalid("A preview is about the file in the path: of distill only mode is taken.", "soft_prompt.distill")
    if distill is not None and file.rows:
        raise invalid("The file has rows. A text to distill is uploaded as .txt or .md.", "soft_prompt.distill")
    if not file.rows and init_prompt is not None:
        raise invalid("A distillation begins with its text: model is the base model's name.", "model")
    mode = None if distill is None or distill.mode is None else DistillRequest(file.id, distill.mode)
    return NewJob(
        caller.owner,
        base.name,
        file.id if file.rows else "",
        request.validation_file,
        init_prompt,
        seed=request.seed,
        hyperparameters=hyperparameters_of(request.method, request.hyperparameters),
        method="supervised" if request.method is None else request.method.type,
        soft_prompt=SoftPromptRequest(fields.method, fields.n_tokens, fields.minutes, mode),
    )


def _info(file_id: str, found: JobPreview) -> PreviewInfo:
    rows: list[RowInfo] = [
        {
            "line": row.where,
            **_answer(row.pieces),
            "rejected": None if row.rejected is None else _answer(row.rejected),
        }
        for row in found.rows
    ]
    settings: list[SettingInfo] = [
        {"setting": choice.setting, "value": _plain_value(choice.value), "why": choice.why} for choice in found.settings
    ]
    return {
        "object": "file.preview",
        "file": file_id,
        "rows": rows,
        "head": found.head,
        "train_rows": found.train_rows,
        "validation_rows": found.validation_rows,
        "tokens": found.tokens,
        "learned_tokens": found.learned_tokens,
        "settings": settings,
        "notes": list(found.notes),
        "read_rows": found.read_rows,
        "method_types": list(found.method_types),
    }


def _answer(pieces: Sequence[Piece]) -> AnswerInfo:
    return {
        "tokens": sum(count for _, _, count in pieces),
        "learned_tokens": sum(count for _, learned, count in pieces if learned),
        "pieces": [{"text": text, "learned": learned, "tokens": count} for text, learned, count in pieces],
    }


def _plain_value(value: object) -> str | float | None:
    return value if value is None or isinstance(value, str | int | float) else str(value)
