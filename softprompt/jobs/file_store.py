"""Files of the jobs' store: rows to train on, and the results that jobs write."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, func, select

from softprompt.errors import QuotaError
from softprompt.jobs import rows
from softprompt.jobs.contents import Contents, Upload
from softprompt.jobs.records import FINISHED, RESULTS, FileRecord, Page
from softprompt.jobs.tables import Database, files_table, inspections_table, jobs_table


class FileStore:
    """Files by id, with an owner each; see `JobStore.files`.

    `owner` is the id of a caller's key; None sees and may do everything.

    Args:
        now: seconds since 1970.
    """

    def __init__(self, database: Database, contents: Contents, now: Callable[[], int]) -> None:
        self._database, self._now = database, now
        self.contents = contents

    def upload(self) -> Upload:
        """A file's content to write in chunks, of at most `Quotas.file_bytes`; use it as a context."""
        with self._database.reading() as connection:
            quotas = rows.quotas_of(rows.setting(connection, "quotas"))
        return self.contents.upload(quotas.file_bytes)

    def add(self, owner: str, purpose: str, filename: str, upload: Upload, n_rows: int = 0) -> FileRecord:
        """Keep an upload as a file.

        Args:
            filename: as the client calls it; shown, never used as a path.
            n_rows: number of checked rows.

        Raises QuotaError for too many rows, files or bytes. StoreError if the disk refuses.
        """
        with self._database.writing() as connection:
            return self.put(connection, owner, purpose, filename, upload, n_rows)

    def put(
        self, connection: Connection, owner: str, purpose: str, filename: str, upload: Upload, n_rows: int
    ) -> FileRecord:
        """`add` within a writing transaction. Files of the purpose fine-tune-results count for no quota."""
        if purpose != RESULTS:
            _check_quota(connection, owner, upload.bytes, n_rows)
        content = upload.keep()  # within the transaction: a `delete` of the same content waits
        file_id = f"file-{secrets.token_hex(12)}"
        values = {"id": file_id, "owner": owner, "purpose": purpose, "filename": filename, "rows": n_rows}
        values |= {"bytes": content.bytes, "sha256": content.sha256, "created_at": self._now(), "status": "processed"}
        connection.execute(files_table.insert().values(**values))
        return rows.file(connection, file_id, owner)

    def get(self, file_id: str, owner: str | None) -> FileRecord:
        """A file. Raises NotFoundError."""
        with self._database.reading() as connection:
            return rows.file(connection, file_id, owner)

    def list(
        self,
        owner: str | None,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        newest_first: bool = True,
    ) -> Page[FileRecord]:
        """The owner's files, beginning behind the file `after`. Raises NotFoundError for an unknown `after`."""
        table = files_table
        query = rows.owned(select(table), table.c.owner, owner)
        if purpose is not None:
            query = query.where(table.c.purpose == purpose)
        with self._database.reading() as connection:
            cursor = None if after is None else rows.number(connection, table, after, owner)
            found = connection.execute(rows.paged(query, table.c.number, cursor, limit, newest_first)).all()
        return Page(tuple(map(rows.file_of, found[:limit])), len(found) > limit)

    def path(self, file: FileRecord) -> Path:
        """Where the content of a file lies, to be read only. Raises StoreError if it is gone."""
        return self.contents.path(file.sha256)

    def delete(self, file_id: str, owner: str | None) -> None:
        """Delete a file; its content stays as long as another file or an unfinished job needs it.

        Raises NotFoundError.
        """
        with self._database.writing() as connection:
            file = rows.file(connection, file_id, owner)
            connection.execute(files_table.delete().where(files_table.c.id == file_id))
            self.forget(connection, file.sha256)

    def forget(self, connection: Connection, sha256: str) -> None:
        """Delete a content that no file and no unfinished job or inspection refers to, within a writing transaction."""
        columns = jobs_table.c.training_sha256, jobs_table.c.validation_sha256, jobs_table.c.text_sha256
        needed = select(jobs_table.c.id).where(jobs_table.c.status.not_in(FINISHED))
        queries = [needed.where(column == sha256) for column in columns]
        reading = select(inspections_table.c.id).where(inspections_table.c.status.not_in(FINISHED))
        queries.append(reading.where(inspections_table.c.sha256 == sha256))
        queries.append(select(files_table.c.id).where(files_table.c.sha256 == sha256))
        if not any(connection.execute(query.limit(1)).first() for query in queries):
            self.contents.remove(sha256)


def _check_quota(connection: Connection, owner: str, size: int, n_rows: int) -> None:
    quotas = rows.quotas_of(rows.setting(connection, "quotas"))
    table = files_table
    query = select(func.count(), func.coalesce(func.sum(table.c.bytes), 0))
    count, stored = connection.execute(query.where(table.c.owner == owner, table.c.purpose != RESULTS)).one()
    for what, got, most in (
        ("the file has too many rows", n_rows, quotas.file_rows),
        ("too many files are stored", count + 1, quotas.stored_files),
        ("the files together are too large", stored + size, quotas.stored_bytes),
    ):
        if most and got > most:
            raise QuotaError(what, expected=f"<= {most:,}", got=f"{got:,}", hint="delete files that are done with")
