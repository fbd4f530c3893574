"""Rows of the database to records and back, and the queries that several modules share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, func, select

from softprompt.errors import NotFoundError
from softprompt.jobs.records import (
    DistillRequest,
    EventType,
    FileRecord,
    Hyperparameters,
    JobBase,
    JobCheckpoint,
    JobEvent,
    JobFailure,
    JobRecord,
    Level,
    ModelOwner,
    NewJob,
    Quotas,
    SoftPromptRequest,
    plain,
)
from softprompt.jobs.tables import checkpoints_table, events_table, files_table, jobs_table, settings_table
from softprompt.json_types import JSONObject


def setting(connection: Connection, name: str) -> JSONObject | None:
    """A stored setting; None if there is none."""
    row = connection.execute(select(settings_table.c.value).where(settings_table.c.name == name)).first()
    return None if row is None else row.value


def job_base_of(value: JSONObject | None) -> JobBase | None:
    """The base model in a stored setting."""
    return None if value is None else JobBase(**{key: str(each) for key, each in value.items()})


def quotas_of(value: JSONObject | None) -> Quotas:
    """The maximum values in a stored setting; the defaults if there is none."""
    return Quotas(**{key: each for key, each in (value or {}).items() if isinstance(each, int)})


def file_of(row: Row) -> FileRecord:
    """A row of files."""
    return FileRecord(**_fields(row, "number"))


def job_of(row: Row) -> JobRecord:
    """A row of jobs."""
    fields = _fields(row, "number")
    soft_prompt, distill = dict(fields["soft_prompt"]), fields["soft_prompt"].get("distill")
    soft_prompt["distill"] = None if distill is None else DistillRequest(**distill)
    resolved, error = fields["resolved"], fields["error"]
    fields |= {
        "hyperparameters": Hyperparameters(**fields["hyperparameters"]),
        "resolved": None if resolved is None else Hyperparameters(**resolved),
        "soft_prompt": SoftPromptRequest(**soft_prompt),
        "error": None if error is None else JobFailure(**error),
        "result_files": tuple(fields["result_files"]),
    }
    return JobRecord(**fields)


def event_of(row: Row) -> JobEvent:
    """A row of events."""
    return JobEvent(**_fields(row))


def checkpoint_of(row: Row) -> JobCheckpoint:
    """A row of checkpoints."""
    return JobCheckpoint(**_fields(row, "number"))


def _fields(row: Row, *but: str) -> dict:
    """Columns by the names of fields."""
    return {key: value for key, value in row._mapping.items() if key not in but}


def new_job_values(new: NewJob, job_id: str, prompt: str, now: int) -> dict[str, object]:
    """The columns of a job in the queue, without the digests of its files."""
    return {
        "id": job_id,
        "owner": new.owner,
        "created_at": now,
        "model": new.model,
        "init_prompt": new.init_prompt,
        "training_file": new.training_file,
        "validation_file": new.validation_file,
        "suffix": new.suffix,
        "seed": new.seed,
        "hyperparameters": plain(new.hyperparameters),
        "method": new.method,
        "soft_prompt": plain(new.soft_prompt),
        "metadata": dict(new.metadata),
        "status": "queued",
        "paused": False,
        "cancel_requested": False,
        "prompt": prompt,
        "result_files": [],
        "step": 0,
        "attempt": 0,
        "crashes": 0,
        "worker": "",
        "lease_until": 0.0,
    }


def owned(query: Select, column: ColumnElement[str], owner: str | None) -> Select:
    """Only rows of this owner; None is all."""
    return query if owner is None else query.where(column == owner)


def paged(query: Select, number: ColumnElement[int], cursor: int | None, limit: int | None, down: bool) -> Select:
    """One row more than the limit, after the row of this number."""
    if cursor is not None:
        query = query.where(number < cursor if down else number > cursor)
    query = query.order_by(number.desc() if down else number)
    return query if limit is None else query.limit(limit + 1)


def number(connection: Connection, table: Table, row_id: str, owner: str | None, job_id: str | None = None) -> int:
    """The number of the row that a listing goes on behind. Raises NotFoundError, for rows of another job, too."""
    query = select(table.c.number).where(table.c.id == row_id)
    query = query if job_id is None else query.where(table.c.job == job_id)
    row = connection.execute(owned(query, table.c.owner, owner) if "owner" in table.c else query).first()
    if row is None:
        raise NotFoundError("no such item to go on behind", where="after", got=row_id)
    return row.number


def file(connection: Connection, file_id: str, owner: str | None, param: str = "file_id") -> FileRecord:
    """A file. Raises NotFoundError, with the parameter's name in `where`."""
    query = owned(select(files_table).where(files_table.c.id == file_id), files_table.c.owner, owner)
    row = connection.execute(query).first()
    if row is None:
        raise NotFoundError("no such file", where=param, got=file_id)
    return file_of(row)


def job(connection: Connection, job_id: str, owner: str | None) -> JobRecord:
    """A job. Raises NotFoundError."""
    query = owned(select(jobs_table).where(jobs_table.c.id == job_id), jobs_table.c.owner, owner)
    row = connection.execute(query).first()
    if row is None:
        raise NotFoundError("no such job", where="fine_tuning_job_id", got=job_id)
    return job_of(row)


def insert_event(
    connection: Connection,
    job_id: str,
    now: int,
    message: str,
    level: Level,
    kind: EventType,
    data: Mapping[str, object] | None,
) -> None:
    """Append an event with the job's next number."""
    table = events_table
    last = connection.execute(select(func.max(table.c.number)).where(table.c.job == job_id)).scalar_one()
    values = {"job": job_id, "number": (last or 0) + 1, "created_at": now, "level": level, "type": kind}
    connection.execute(table.insert().values(**values, message=message, data=None if data is None else dict(data)))


def models(connection: Connection, owner: str | None) -> tuple[ModelOwner, ...]:
    """The soft prompts of finished jobs, newest first."""
    query = select(jobs_table).where(jobs_table.c.fine_tuned_model.is_not(None))
    query = owned(query, jobs_table.c.owner, owner).order_by(jobs_table.c.number.desc())
    return tuple(_model_of(job_of(row)) for row in connection.execute(query))


def model(connection: Connection, name: str, owner: str | None) -> ModelOwner | None:
    """The soft prompt of a name: full name or folder of a job's or a checkpoint's prompt, then the newest suffix."""
    jobs, saved = jobs_table, checkpoints_table
    done = owned(select(jobs).where(jobs.c.fine_tuned_model.is_not(None)), jobs.c.owner, owner)
    done = done.order_by(jobs.c.number.desc()).limit(1)
    for found in (
        done.where((jobs.c.fine_tuned_model == name) | (jobs.c.prompt == name)),
        done.where(jobs.c.suffix == name) if name else None,
    ):
        row = None if found is None else connection.execute(found).first()
        if row is not None:
            return _model_of(job_of(row))
    query = select(saved, jobs.c.owner).join(jobs, jobs.c.id == saved.c.job)
    query = query.where((saved.c.fine_tuned_model_checkpoint == name) | (saved.c.prompt == name)).limit(1)
    row = connection.execute(owned(query, jobs.c.owner, owner)).first()
    if row is None:
        return None
    return ModelOwner(row.fine_tuned_model_checkpoint, row.prompt, row.owner, row.job, row.created_at)


def _model_of(job: JobRecord) -> ModelOwner:
    return ModelOwner(cast(str, job.fine_tuned_model), job.prompt, job.owner, job.id, job.finished_at or job.created_at)
