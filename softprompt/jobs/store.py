"""The store of files and jobs, as a server uses it: every call names the owner and sees nothing of others.

    store = JobStore.open("runs/jobs")                    # a folder, or the URL of a database
    with store.files.upload() as upload:
        upload.write(chunk)
        file = store.files.add("key-1", "fine-tune", "rows.jsonl", upload, n_rows=120)
    job = store.create_job(NewJob("key-1", "smollm2-135m", file.id))

All methods block: a server calls them in threads. Workers use `queue` beside it.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection, func, select

from softprompt.errors import ConfigError, JobError, NotFoundError, QuotaError
from softprompt.jobs import rows
from softprompt.jobs.contents import Contents
from softprompt.jobs.file_store import FileStore
from softprompt.jobs.records import (
    EventType,
    JobBase,
    JobCheckpoint,
    JobEvent,
    JobRecord,
    Level,
    ModelOwner,
    NewJob,
    Page,
    Quotas,
    event_number,
    plain,
    prompt_name,
)
from softprompt.jobs.tables import (
    DATABASE,
    Database,
    checkpoints_table,
    events_table,
    jobs_table,
    settings_table,
)
from softprompt.json_types import JSONObject


class JobStore:
    """Files, jobs, events and checkpoints in a database, the files' contents and runs in a folder.

    `owner` is the id of a caller's key everywhere; None sees and may do everything.

    Args:
        home: folder of contents and runs; of several machines one that all of them share.
        now: the clock, in seconds since 1970.

    Attributes:
        files: uploads and results.
        runs: folder of what running jobs write.
    """

    def __init__(self, database: Database, home: Path, now: Callable[[], float] = time.time) -> None:
        self.database, self.home = database, home
        self.files = FileStore(database, Contents(home / "files" / "sha256"), self.time)
        self.runs = home / "runs"
        self.now = now

    @classmethod
    def open(cls, place: str, home: Path | None = None, now: Callable[[], float] = time.time) -> JobStore:
        """The store in a folder, or in a database by its URL; it is made if it is not there.

        Args:
            place: a folder, sqlite:///FILE or postgresql://….
            home: needed with a database that is no file; else the file's folder.

        Raises ConfigError, MissingExtraError or StoreError.
        """
        if "://" not in place:
            home = home or Path(place)
            return cls(Database(f"sqlite:///{Path(place) / DATABASE}"), home, now)
        scheme, _, rest = place.partition("://")
        if home is None and scheme.startswith("sqlite") and rest.strip("/"):
            home = Path(rest.removeprefix("/")).parent
        if home is None:
            raise ConfigError("a folder for the files is needed", where="--store", hint="--store-files FOLDER")
        return cls(Database(place), home, now)

    def close(self) -> None:
        """Close the connections to the database."""
        self.database.close()

    # What the store is for

    def configure(self, base: JobBase | None = None, quotas: Quotas | None = None) -> None:
        """Set what workers read: the base model of all jobs, and the maximum values of every owner."""
        with self.database.writing() as connection:
            for name, value in (("base", base), ("quotas", quotas)):
                if value is not None:
                    connection.execute(settings_table.delete().where(settings_table.c.name == name))
                    connection.execute(settings_table.insert().values(name=name, value=plain(value)))

    def base(self) -> JobBase | None:
        """The base model of the store's jobs; None if no server has set one."""
        with self.database.reading() as connection:
            return rows.job_base_of(rows.setting(connection, "base"))

    def quotas(self) -> Quotas:
        """The maximum values of every owner."""
        with self.database.reading() as connection:
            return rows.quotas_of(rows.setting(connection, "quotas"))

    # Jobs

    def create_job(self, new: NewJob) -> JobRecord:
        """Put a job into the queue.

        Raises:
            NotFoundError: an unknown file, `where` names the parameter.
            QuotaError: too many jobs of this owner wait.
            JobError: no base model of that name.
            ConfigError: hyperparameters or settings that no run could take, `where` names the setting.
        """
        from softprompt.jobs.plan import check_new_job  # which knows training; most uses of the store need none of it

        base = self.base()
        if base is None or base.name != new.model:
            expected = base.name if base is not None else "a server with --jobs"
            raise JobError("jobs cannot train on this model", where="model", expected=expected, got=new.model)
        new = bounded(new, self.quotas())
        check_new_job(new, base)
        distill = new.soft_prompt.distill
        named = {"training_file": new.training_file or None, "validation_file": new.validation_file}
        named["soft_prompt.distill.file"] = None if distill is None else distill.file
        if named["training_file"] is None and distill is None:
            raise NotFoundError("a job needs rows to train on", where="training_file")
        job_id = f"ftjob-{secrets.token_hex(12)}"
        with self.database.writing() as connection:
            _check_quota(connection, new)
            files = {
                param: "" if name is None else rows.file(connection, name, new.owner, param).sha256
                for param, name in named.items()
            }
            values = rows.new_job_values(new, job_id, prompt_name(new.suffix, job_id), self.time())
            digests = dict(zip(("training_sha256", "validation_sha256", "text_sha256"), files.values(), strict=True))
            connection.execute(jobs_table.insert().values(**values, **digests))
            self.put_event(connection, job_id, f"Created fine-tuning job: {job_id}")
            self.put_event(connection, job_id, "The files are checked; the job waits for a worker")
            return rows.job(connection, job_id, new.owner)

    def job(self, job_id: str, owner: str | None) -> JobRecord:
        """A job. Raises NotFoundError."""
        with self.database.reading() as connection:
            return rows.job(connection, job_id, owner)

    def jobs(
        self,
        owner: str | None,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
    ) -> Page[JobRecord]:
        """The owner's jobs, newest first, beginning behind the job `after`.

        Args:
            metadata: only jobs with these pairs; of an empty mapping those without any.

        Raises NotFoundError for an unknown `after`.
        """
        query = rows.owned(select(jobs_table), jobs_table.c.owner, owner)
        with self.database.reading() as connection:
            cursor = None if after is None else rows.number(connection, jobs_table, after, owner)
            found = list[JobRecord]()
            for row in connection.execute(rows.paged(query, jobs_table.c.number, cursor, None, True)):
                job = rows.job_of(row)
                if metadata is None or (metadata.items() <= job.metadata.items() if metadata else not job.metadata):
                    found.append(job)
                if len(found) > limit:
                    break
        return Page(tuple(found[:limit]), len(found) > limit)

    def open_jobs(self) -> dict[str, int]:
        """How many jobs of all owners are "queued" and "running", without paused ones."""
        query = select(jobs_table.c.status, func.count()).where(jobs_table.c.paused.is_(False))
        with self.database.reading() as connection:
            counts = {row[0]: row[1] for row in connection.execute(query.group_by(jobs_table.c.status))}
        return {status: counts.get(status, 0) for status in ("queued", "running")}

    def cancel_job(self, job_id: str, owner: str | None) -> JobRecord:
        """End a job: at once if it waits, within a training step if it runs.

        Raises NotFoundError, or JobError if it has ended.
        """
        with self.database.writing() as connection:
            job = self._unfinished(connection, job_id, owner)
            if job.status == "running":
                self.change(connection, job_id, cancel_requested=True)
            else:
                self.end_job(connection, job, status="cancelled")
                self.put_event(connection, job_id, "The job was cancelled")
            changed = rows.job(connection, job_id, owner)
        if changed.is_finished:
            self.forget_run(job_id)
        return changed

    def pause_job(self, job_id: str, owner: str | None) -> JobRecord:
        """Keep a job from running until `resume_job`; a running one saves a checkpoint within a training step.

        Raises NotFoundError, or JobError if it has ended or is paused already.
        """
        with self.database.writing() as connection:
            job = self._unfinished(connection, job_id, owner)
            if job.paused:
                raise JobError("the job is paused already", where=job_id)
            self.change(connection, job_id, paused=True)
            if job.status != "running":
                self.put_event(connection, job_id, "The job is paused")
            return rows.job(connection, job_id, owner)

    def resume_job(self, job_id: str, owner: str | None) -> JobRecord:
        """Let a paused job run again. Raises NotFoundError, or JobError if it is not paused."""
        with self.database.writing() as connection:
            job = self._unfinished(connection, job_id, owner)
            if not job.paused:
                raise JobError("the job is not paused", where=job_id)
            self.change(connection, job_id, paused=False)
            self.put_event(connection, job_id, "The job goes on" if job.step else "The job waits for a worker")
            return rows.job(connection, job_id, owner)

    # Events, checkpoints, names

    def events(
        self, job_id: str, owner: str | None, *, after: str | None = None, limit: int = 20, newest_first: bool = True
    ) -> Page[JobEvent]:
        """A job's events, beginning behind the event `after`. Raises NotFoundError for an unknown job or `after`.

        Args:
            newest_first: as OpenAI lists them; False to follow a job.
        """
        number = None if after is None else event_number(after)
        if after is not None and number is None:
            raise NotFoundError("no such event", where="after", got=after)
        table = events_table
        with self.database.reading() as connection:
            job = rows.job(connection, job_id, owner)
            query = select(table).where(table.c.job == job.id)
            found = connection.execute(rows.paged(query, table.c.number, number, limit, newest_first)).all()
        return Page(tuple(rows.event_of(row) for row in found[:limit]), len(found) > limit)

    def checkpoints(
        self, job_id: str, owner: str | None, *, after: str | None = None, limit: int = 10
    ) -> Page[JobCheckpoint]:
        """A job's checkpoints, newest first. Raises NotFoundError for an unknown job or `after`."""
        table = checkpoints_table
        with self.database.reading() as connection:
            job = rows.job(connection, job_id, owner)
            cursor = None if after is None else rows.number(connection, table, after, None, job.id)
            query = select(table).where(table.c.job == job.id)
            found = connection.execute(rows.paged(query, table.c.number, cursor, limit, True)).all()
        return Page(tuple(rows.checkpoint_of(row) for row in found[:limit]), len(found) > limit)

    def model(self, name: str, owner: str | None) -> ModelOwner | None:
        """The finished soft prompt that a name stands for; None if there is none.

        Args:
            name: ft:BASE:SUFFIX:ID, a checkpoint's name, a name in the prompts folder, or the alias SUFFIX, which is
                the newest job's.
        """
        with self.database.reading() as connection:
            return rows.model(connection, name, owner)

    def models(self, owner: str | None) -> tuple[ModelOwner, ...]:
        """The soft prompts of all finished jobs, newest first."""
        with self.database.reading() as connection:
            return rows.models(connection, owner)

    # What `queue` shares

    def time(self) -> int:
        """Seconds since 1970."""
        return int(self.now())

    def put_event(
        self,
        connection: Connection,
        job_id: str,
        message: str,
        *,
        level: Level = "info",
        kind: EventType = "message",
        data: JSONObject | None = None,
    ) -> None:
        """Append an event to a job's history, within a writing transaction."""
        rows.insert_event(connection, job_id, self.time(), message, level, kind, data)

    def change(self, connection: Connection, job_id: str, **values: object) -> None:
        """Set columns of a job, within a writing transaction."""
        connection.execute(jobs_table.update().where(jobs_table.c.id == job_id).values(**values))

    def end_job(self, connection: Connection, job: JobRecord, **values: object) -> None:
        """Set columns of a job that ends, and forget the contents that only it needed."""
        ended = {"finished_at": self.time(), "paused": False, "cancel_requested": False, "lease_until": 0.0}
        self.change(connection, job.id, **{**ended, "estimated_finish": None, **values})
        for sha256 in {job.training_sha256, job.validation_sha256, job.text_sha256} - {""}:
            self.files.forget(connection, sha256)

    def forget_run(self, job_id: str) -> None:
        """Remove the checkpoints and logs of a job that has ended."""
        shutil.rmtree(self.runs / job_id, ignore_errors=True)

    def _unfinished(self, connection: Connection, job_id: str, owner: str | None) -> JobRecord:
        job = rows.job(connection, job_id, owner)
        if job.is_finished:
            raise JobError(f"the job has ended: {job.status}", where=job_id)
        return job


def bounded(new: NewJob, quotas: Quotas) -> NewJob:
    """With the time of a job that leaves its length to the recipe. A distillation's own settings bound it."""
    own, minutes = new.soft_prompt, quotas.auto_minutes
    if new.hyperparameters.n_epochs != "auto" or own.minutes is not None or own.distill is not None or not minutes:
        return new
    return replace(new, soft_prompt=replace(own, most_minutes=min(minutes, quotas.job_minutes or minutes)))


def _check_quota(connection: Connection, new: NewJob) -> None:
    quotas = rows.quotas_of(rows.setting(connection, "quotas"))
    minutes, most = new.soft_prompt.minutes or 0.0, quotas.job_minutes
    if most and minutes > most:
        raise QuotaError("too long for a job", where="soft_prompt.minutes", expected=f"<= {most}", got=minutes)
    table = jobs_table
    query = select(func.count()).where(table.c.owner == new.owner, table.c.status == "queued")
    most = quotas.queued_jobs
    if most and connection.execute(query).scalar_one() >= most:
        raise QuotaError("too many jobs wait", expected=f"<= {most:,}", hint="cancel some, or wait")
