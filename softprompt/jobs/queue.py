"""The queue of jobs, as a worker uses it: claim a job, renew its lease, report on it, end it.

Every job has one worker at a time: a claim is a lease of some seconds that heartbeats renew. When the lease of a worker
that died has expired, another worker claims the job and goes on from its last checkpoint. The number of the attempt
fences the first one out: whatever it still wants to write raises LeaseLostError.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from typing import Literal, TypeAlias

from sqlalchemy import Connection, func, select

from softprompt.errors import LeaseLostError
from softprompt.jobs import rows
from softprompt.jobs.records import (
    RESULTS,
    EventType,
    Hyperparameters,
    JobFailure,
    JobRecord,
    Level,
    plain,
)
from softprompt.jobs.store import JobStore
from softprompt.jobs.tables import checkpoints_table, inspections_table, jobs_table
from softprompt.json_types import JSONObject

JobOrder: TypeAlias = Literal["", "cancel", "pause"]  # what a running job's owner wants of it

LEASE_S = 60.0
MAX_CRASHES = 3


class JobQueue:
    """The store's jobs for one worker.

    Args:
        worker: unique name of the worker.
        lease_s: seconds without a heartbeat after which another worker may take the job.
    """

    def __init__(self, store: JobStore, worker: str, lease_s: float = LEASE_S) -> None:
        self.store, self.worker = store, worker
        self.lease_s = lease_s

    def claim(self, model: str) -> JobRecord | None:
        """Take the next job on this base model; None if there is none.

        Owners with fewer running jobs come first, then older jobs. Jobs that wait or whose lease has expired are taken,
        those of owners with `Quotas.running_jobs` running ones are not.
        """
        with self.store.database.writing() as connection:
            self._release_expired(connection)
            table = jobs_table
            busy = select(table.c.owner, func.count().label("running")).where(table.c.status == "running")
            busy_owners = busy.group_by(table.c.owner).subquery()
            running = func.coalesce(busy_owners.c.running, 0)
            query = select(table.c.id).join(busy_owners, busy_owners.c.owner == table.c.owner, isouter=True)
            query = query.where(table.c.status == "queued", table.c.paused.is_(False), table.c.model == model)
            if most := rows.quotas_of(rows.setting(connection, "quotas")).running_jobs:
                query = query.where(running < most)
            row = connection.execute(query.order_by(running, table.c.number).limit(1)).first()
            if row is None:
                return None
            job = rows.job(connection, row.id, None)
            began = {"started_at": job.started_at or self.store.time(), "attempt": job.attempt + 1}
            lease = {"worker": self.worker, "lease_until": self.store.now() + self.lease_s}
            self.store.change(connection, job.id, status="running", **began, **lease)
            message = "The job goes on from its last checkpoint" if job.step else "The job starts"
            self.store.put_event(connection, job.id, message)
            return rows.job(connection, job.id, None)

    def heartbeat(self, job: JobRecord) -> JobOrder:
        """Renew the lease; returns what the job's owner wants. Raises LeaseLostError."""
        with self.store.database.writing() as connection:
            current = self._mine(connection, job)
            self.store.change(connection, job.id, lease_until=self.store.now() + self.lease_s)
            return _order(current)

    def order(self, job: JobRecord) -> JobOrder:
        """What the job's owner wants, without renewing the lease. Raises LeaseLostError."""
        with self.store.database.reading() as connection:
            return _order(self._mine(connection, job))

    def event(
        self,
        job: JobRecord,
        message: str,
        *,
        level: Level = "info",
        kind: EventType = "message",
        data: JSONObject | None = None,
    ) -> None:
        """Append an event to the job's history. Raises LeaseLostError."""
        with self.store.database.writing() as connection:
            self._mine(connection, job)
            self.store.put_event(connection, job.id, message, level=level, kind=kind, data=data)

    def resolve(self, job: JobRecord, resolved: Hyperparameters, message: str) -> None:
        """Record the hyperparameters that are used. Raises LeaseLostError."""
        with self.store.database.writing() as connection:
            if self._mine(connection, job).resolved != resolved:
                self.store.change(connection, job.id, resolved=plain(resolved))
                self.store.put_event(connection, job.id, message)

    def progress(self, job: JobRecord, step: int, estimated_finish: int | None) -> None:
        """Record a saved step; a job that gets further has not crashed in vain. Raises LeaseLostError."""
        with self.store.database.writing() as connection:
            current = self._mine(connection, job)
            further = {"step": step, "crashes": 0} if step > current.step else {}
            self.store.change(connection, job.id, estimated_finish=estimated_finish, **further)

    def checkpoint(self, job: JobRecord, step: int, prompt: str, metrics: Mapping[str, float]) -> None:
        """Record the soft prompt of a validation, once for each step. Raises LeaseLostError."""
        table = checkpoints_table
        with self.store.database.writing() as connection:
            self._mine(connection, job)
            known = connection.execute(select(table.c.id).where(table.c.job == job.id, table.c.step_number == step))
            if known.first() is not None:
                return
            values = {"id": f"ftckpt_{secrets.token_hex(12)}", "job": job.id, "created_at": self.store.time()}
            name = f"{job.model_name}:ckpt-step-{step}"
            values |= {"step_number": step, "prompt": prompt, "fine_tuned_model_checkpoint": name}
            connection.execute(table.insert().values(**values, metrics=dict(metrics)))
            self.store.put_event(connection, job.id, f"Checkpoint created at step {step}: {name}")

    def succeed(self, job: JobRecord, trained_tokens: int, results: Mapping[str, bytes]) -> None:
        """End a job whose soft prompt is complete in the prompts folder; from now on its name is known.

        Args:
            results: contents of the result files, by file name.

        Raises LeaseLostError.
        """
        with self.store.database.writing() as connection:
            self._mine(connection, job)
            ids = []
            for name, content in results.items():
                with self.store.files.contents.upload() as upload:
                    upload.write(content)
                    ids.append(self.store.files.put(connection, job.owner, RESULTS, name, upload, 0).id)
            ended = {"status": "succeeded", "fine_tuned_model": job.model_name, "result_files": ids}
            self.store.end_job(connection, job, **ended, trained_tokens=trained_tokens)
            self.store.put_event(connection, job.id, f"New fine-tuned model created: {job.model_name}")
            self.store.put_event(connection, job.id, "The job has successfully completed")
        self.store.forget_run(job.id)

    def fail(self, job: JobRecord, failure: JobFailure) -> None:
        """End a job that cannot go on. Raises LeaseLostError."""
        with self.store.database.writing() as connection:
            self._fail(connection, self._mine(connection, job), failure)
        self.store.forget_run(job.id)

    def cancelled(self, job: JobRecord) -> None:
        """End a job that its owner has cancelled. Raises LeaseLostError."""
        with self.store.database.writing() as connection:
            self._mine(connection, job)
            self._cancel(connection, job)
        self.store.forget_run(job.id)

    def release(self, job: JobRecord) -> None:
        """Give a job back, which is paused or whose worker stops; it goes on from its checkpoint later.

        Raises LeaseLostError.
        """
        with self.store.database.writing() as connection:
            current = self._mine(connection, job)
            self.store.change(connection, job.id, status="queued", lease_until=0.0, estimated_finish=None)
            message = "The job is paused" if current.paused else "The worker stops; the job waits for another one"
            self.store.put_event(connection, job.id, message)

    def _mine(self, connection: Connection, job: JobRecord) -> JobRecord:
        """The job as it is now. Raises LeaseLostError if it is no longer this worker's."""
        current = rows.job(connection, job.id, None)
        if (current.status, current.attempt, current.worker) != ("running", job.attempt, self.worker):
            got = f"{current.status}, attempt {current.attempt} by {current.worker}"
            raise LeaseLostError("the job is another worker's now", where=job.id, got=got)
        return current

    def _release_expired(self, connection: Connection) -> None:
        """Put jobs whose worker has died back into the queue, or end them."""
        table = jobs_table
        expired = select(table).where(table.c.status == "running", table.c.lease_until < self.store.now())
        for row in connection.execute(expired).all():
            job = rows.job_of(row)
            crashes = job.crashes + 1
            if job.cancel_requested:
                self._cancel(connection, job)
            elif crashes >= MAX_CRASHES:
                times = f"{crashes} workers died in a row while they ran this job"
                self._fail(connection, job, JobFailure("worker_lost", f"{times}, without getting further"))
            else:
                self.store.change(connection, job.id, status="queued", crashes=crashes, lease_until=0.0)
                self.store.put_event(connection, job.id, "The worker was lost", level="warn")

    def _cancel(self, connection: Connection, job: JobRecord) -> None:
        self.store.end_job(connection, job, status="cancelled")
        self.store.put_event(connection, job.id, "The job was cancelled")

    def _fail(self, connection: Connection, job: JobRecord, failure: JobFailure) -> None:
        self.store.end_job(connection, job, status="failed", error=plain(failure))
        self.store.put_event(connection, job.id, f"The job failed: {failure.message}", level="error")


def worker_name(pid: int) -> str:
    """How the name of a worker in this process of this machine begins."""
    return f"{socket.gethostname()}-{pid}-"


def expire_leases(store: JobStore, name: str) -> None:
    """Let others take the jobs and inspections of a worker that is known to be dead.

    Args:
        name: how its name begins.
    """
    with store.database.writing() as connection:
        for table in (jobs_table, inspections_table):
            mine = table.update().where(table.c.status == "running", table.c.worker.startswith(name, autoescape=True))
            connection.execute(mine.values(lease_until=0.0))


def _order(job: JobRecord) -> JobOrder:
    return "cancel" if job.cancel_requested else "pause" if job.paused else ""
