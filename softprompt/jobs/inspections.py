"""Inspections of soft prompts: rows of the database for their owners, and a queue for workers.

An inspection runs the base model many times, so it is a worker's and never the server's. It keeps its result: the
report as a page, and all numbers as JSON. As with jobs, a claim is a lease, and the number of the attempt fences a
worker out that has lost it.
"""

from __future__ import annotations

import secrets

from sqlalchemy import Connection, Row, func, select

from softprompt.errors import LeaseLostError, NotFoundError, QuotaError
from softprompt.jobs import rows
from softprompt.jobs.inspection_records import InspectionRecord, InspectionResult, NewInspection
from softprompt.jobs.records import FINISHED, JobFailure, Page, plain
from softprompt.jobs.store import JobStore
from softprompt.jobs.tables import inspections_table

MAX_STORED = 200  # of one owner
MAX_ATTEMPTS = 3  # workers that may die of one
_LOST = JobFailure("worker_lost", f"{MAX_ATTEMPTS} workers died while they ran this inspection")
_COLUMNS = [column for column in inspections_table.c if column.name not in {"number", "report", "numbers"}]


class Inspections:
    """The inspections of a store; `owner` is as there."""

    def __init__(self, store: JobStore) -> None:
        self.store = store

    def create(self, new: NewInspection) -> InspectionRecord:
        """Put an inspection into the queue.

        Raises NotFoundError for an unknown file, QuotaError for too many inspections of this owner.
        """
        table, inspection_id = inspections_table, f"insp-{secrets.token_hex(12)}"
        values = {"id": inspection_id, "owner": new.owner, "created_at": self.store.time(), "base": new.base}
        values |= {"model": new.model, "prompt": new.prompt, "file": new.file, "sections": list(new.sections)}
        values |= {
            "limit": new.limit,
            "status": "queued",
            "section": "",
            "attempt": 0,
            "worker": "",
            "lease_until": 0.0,
        }
        with self.store.database.writing() as connection:
            self._check_quota(connection, new.owner)
            file = None if new.file is None else rows.file(connection, new.file, new.owner, "file")
            connection.execute(table.insert().values(**values, sha256="" if file is None else file.sha256))
            return self._get(connection, inspection_id, new.owner)

    def get(self, inspection_id: str, owner: str | None) -> InspectionRecord:
        """An inspection. Raises NotFoundError."""
        with self.store.database.reading() as connection:
            return self._get(connection, inspection_id, owner)

    def result(self, inspection_id: str, owner: str | None) -> InspectionResult | None:
        """The result of an inspection; None while there is none. Raises NotFoundError."""
        table = inspections_table
        with self.store.database.reading() as connection:
            self._get(connection, inspection_id, owner)
            row = connection.execute(select(table.c.report, table.c.numbers).where(table.c.id == inspection_id)).one()
        return None if row.report is None else InspectionResult(row.report, row.numbers)

    def list(self, owner: str | None, *, after: str | None = None, limit: int = 20) -> Page[InspectionRecord]:
        """The owner's inspections, newest first, beginning behind `after`. Raises NotFoundError for an unknown one."""
        table = inspections_table
        with self.store.database.reading() as connection:
            cursor = None if after is None else rows.number(connection, table, after, owner)
            query = rows.paged(rows.owned(select(*_COLUMNS), table.c.owner, owner), table.c.number, cursor, limit, True)
            found = connection.execute(query).all()
        return Page(tuple(_record(row) for row in found[:limit]), len(found) > limit)

    def delete(self, inspection_id: str, owner: str | None) -> None:
        """Forget an inspection and its result; one that runs ends at its next section. Raises NotFoundError."""
        with self.store.database.writing() as connection:
            record = self._get(connection, inspection_id, owner)
            connection.execute(inspections_table.delete().where(inspections_table.c.id == record.id))
            self._forget_file(connection, record)

    # For workers

    def claim(self, base: str, worker: str, lease_s: float) -> InspectionRecord | None:
        """Take the oldest inspection of a soft prompt of this base model; None if none waits."""
        table, now = inspections_table, self.store.now()
        waiting = (table.c.status == "queued") | ((table.c.status == "running") & (table.c.lease_until < now))
        query = select(*_COLUMNS).where(waiting, table.c.base == base).order_by(table.c.number).limit(1)
        with self.store.database.reading() as connection:  # mostly there is none, and readers never wait
            if connection.execute(query).first() is None:
                return None
        with self.store.database.writing() as connection:
            while (row := connection.execute(query).first()) is not None:
                record = _record(row)
                if record.attempt >= MAX_ATTEMPTS:
                    self._end(connection, record, status="failed", error=plain(_LOST))
                    continue
                taken = {"status": "running", "worker": worker, "lease_until": now + lease_s, "section": ""}
                taken |= {"attempt": record.attempt + 1, "started_at": record.started_at or self.store.time()}
                self._change(connection, record, **taken)
                return self._get(connection, record.id, None)
        return None

    def renew(self, record: InspectionRecord, lease_s: float) -> None:
        """Renew the lease. Raises LeaseLostError, if the inspection was deleted, too."""
        with self.store.database.writing() as connection:
            self._change(connection, self._mine(connection, record), lease_until=self.store.now() + lease_s)

    def progress(self, record: InspectionRecord, section: str) -> None:
        """Record which section begins. Raises LeaseLostError."""
        with self.store.database.writing() as connection:
            self._change(connection, self._mine(connection, record), section=section)

    def succeed(self, record: InspectionRecord, result: InspectionResult) -> None:
        """Keep the result. Raises LeaseLostError."""
        kept = {"report": result.report, "numbers": result.numbers}
        with self.store.database.writing() as connection:
            self._end(connection, self._mine(connection, record), status="succeeded", **kept)

    def fail(self, record: InspectionRecord, failure: JobFailure) -> None:
        """End an inspection that cannot be made. Raises LeaseLostError."""
        with self.store.database.writing() as connection:
            self._end(connection, self._mine(connection, record), status="failed", error=plain(failure))

    def release(self, record: InspectionRecord) -> None:
        """Give an inspection back, since the worker stops; it begins again elsewhere. Raises LeaseLostError."""
        with self.store.database.writing() as connection:
            mine = self._mine(connection, record)
            self._change(connection, mine, status="queued", attempt=mine.attempt - 1, lease_until=0.0, section="")

    def _get(self, connection: Connection, inspection_id: str, owner: str | None) -> InspectionRecord:
        table = inspections_table
        query = rows.owned(select(*_COLUMNS).where(table.c.id == inspection_id), table.c.owner, owner)
        row = connection.execute(query).first()
        if row is None:
            raise NotFoundError("no such inspection", where="inspection_id", got=inspection_id)
        return _record(row)

    def _mine(self, connection: Connection, record: InspectionRecord) -> InspectionRecord:
        """The inspection as it is now. Raises LeaseLostError if it is no longer this attempt's, or was deleted."""
        try:
            current = self._get(connection, record.id, None)
        except NotFoundError as error:
            raise LeaseLostError("the inspection was deleted", where=record.id) from error
        if (current.status, current.attempt, current.worker) != ("running", record.attempt, record.worker):
            raise LeaseLostError("the inspection is another worker's now", where=record.id)
        return current

    def _change(self, connection: Connection, record: InspectionRecord, **values: object) -> None:
        connection.execute(inspections_table.update().where(inspections_table.c.id == record.id).values(**values))

    def _end(self, connection: Connection, record: InspectionRecord, **values: object) -> None:
        ended = {"finished_at": self.store.time(), "lease_until": 0.0, "section": ""}
        self._change(connection, record, **{**ended, **values})
        self._forget_file(connection, record)

    def _forget_file(self, connection: Connection, record: InspectionRecord) -> None:
        if record.sha256:
            self.store.files.forget(connection, record.sha256)

    def _check_quota(self, connection: Connection, owner: str) -> None:
        table = inspections_table
        query = select(func.count()).where(table.c.owner == owner)
        if connection.execute(query).scalar_one() >= MAX_STORED:
            hint = "delete inspections that are done with"
            raise QuotaError("too many inspections are stored", expected=f"<= {MAX_STORED}", hint=hint)
        waiting = query.where(table.c.status.not_in(FINISHED))
        most = rows.quotas_of(rows.setting(connection, "quotas")).queued_jobs
        if most and connection.execute(waiting).scalar_one() >= most:
            raise QuotaError("too many inspections wait", expected=f"<= {most:,}", hint="delete some, or wait")


def _record(row: Row) -> InspectionRecord:
    fields = dict(row._mapping)
    error = fields["error"]
    made = {"sections": tuple(fields["sections"]), "error": None if error is None else JobFailure(**error)}
    return InspectionRecord(**{**fields, **made})
