"""The jobs' database: tables, and connections to SQLite or PostgreSQL.

Readers never wait (SQLite is in WAL mode), writers wait for each other: a writing transaction takes the one write lock
when it begins, so that no other process can change what it has read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from sqlalchemy import (
        JSON,
        BigInteger,
        Boolean,
        Column,
        Connection,
        Engine,
        Float,
        Index,
        Integer,
        MetaData,
        String,
        Table,
        Text,
        create_engine,
        event,
    )
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError
except ImportError as error:
    from softprompt.errors import missing_extra

    raise missing_extra("sqlalchemy", "serve", where="jobs") from error

from softprompt.errors import ConfigError, MissingExtraError, StoreError

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection

DATABASE = "jobs.db"
VERSION = 1  # of the tables
_WAIT_S = 30  # for another writer
_WRITE_LOCK = 0x736F6674  # PostgreSQL's number of our lock

metadata = MetaData()

settings_table = Table("settings", metadata, Column("name", String(32), primary_key=True), Column("value", JSON))

files_table = Table(
    "files",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), unique=True, nullable=False),
    Column("owner", String(64), nullable=False, index=True),
    Column("purpose", String(32), nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("rows", Integer, nullable=False),
)

jobs_table = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), unique=True, nullable=False),
    Column("owner", String(64), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("model", Text, nullable=False),
    Column("init_prompt", Text),
    Column("training_file", String(64), nullable=False),
    Column("validation_file", String(64)),
    Column("training_sha256", String(64), nullable=False),
    Column("validation_sha256", String(64), nullable=False),
    Column("text_sha256", String(64), nullable=False),
    Column("suffix", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("hyperparameters", JSON, nullable=False),
    Column("resolved", JSON(none_as_null=True)),
    Column("method", String(16), nullable=False),
    Column("soft_prompt", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("status", String(16), nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("error", JSON(none_as_null=True)),
    Column("prompt", String(64), nullable=False),
    Column("fine_tuned_model", Text, index=True),
    Column("trained_tokens", BigInteger),
    Column("estimated_finish", BigInteger),
    Column("result_files", JSON, nullable=False),
    Column("step", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("worker", Text, nullable=False),
    Column("lease_until", Float, nullable=False),
    Index("jobs_by_status", "status", "number"),
)

events_table = Table(
    "events",
    metadata,
    Column("job", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("created_at", BigInteger, nullable=False),
    Column("level", String(8), nullable=False),
    Column("type", String(8), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON(none_as_null=True)),
)

checkpoints_table = Table(
    "checkpoints",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), unique=True, nullable=False),
    Column("job", String(64), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("step_number", Integer, nullable=False),
    Column("prompt", String(64), nullable=False),
    Column("fine_tuned_model_checkpoint", Text, nullable=False, index=True),
    Column("metrics", JSON, nullable=False),
)

inspections_table = Table(
    "inspections",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), unique=True, nullable=False),
    Column("owner", String(64), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("base", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("file", String(64)),
    Column("sha256", String(64), nullable=False),
    Column("sections", JSON, nullable=False),
    Column("limit", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("section", Text, nullable=False),
    Column("error", JSON(none_as_null=True)),
    Column("attempt", Integer, nullable=False),
    Column("worker", Text, nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("report", Text),
    Column("numbers", Text),
    Index("inspections_by_status", "status", "number"),
)


class Database:
    """Transactions on the tables, which are made if they are missing.

    Args:
        url: a URL of SQLAlchemy: sqlite:///FILE or postgresql://….

    Raises ConfigError: not a URL of a known database. MissingExtraError: its driver is not installed. StoreError: it
    cannot be opened, or was written by a newer softprompt.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self.where = self._engine.url.render_as_string(hide_password=True)
        try:
            with self.writing() as connection:
                metadata.create_all(connection)
                row = connection.execute(settings_table.select().where(settings_table.c.name == "version")).first()
                if row is None:
                    connection.execute(settings_table.insert().values(name="version", value=VERSION))
        except SQLAlchemyError as error:
            what = f"the jobs' database cannot be opened: {_words(error)}"
            raise StoreError(what, where=self.where, hint="--store names a folder or a URL") from error
        if row is not None and row.value != VERSION:
            hint = "a newer softprompt wrote it"
            raise StoreError("unknown version of the jobs' database", where=self.where, got=row.value, hint=hint)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; it is undone if the block raises."""
        with self._engine.execution_options(writes=True).begin() as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads one state of the database."""
        with self._engine.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
            expected = "sqlite:///FILE or postgresql://USER@HOST/NAME"
            raise ConfigError("not a database for jobs", where="--store", expected=expected, got=parsed.drivername)
        if parsed.get_backend_name() == "postgresql":
            engine = create_engine(parsed, pool_pre_ping=True)
            event.listen(engine, "begin", _on_begin_postgresql)
            return engine
        if parsed.database is not None:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": _WAIT_S})
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError("not a URL of a database", where="--store", got=_words(error)) from error
    except ModuleNotFoundError as error:
        hint = f"pip install {error.name}"
        raise MissingExtraError("the database's driver is not installed", where="--store", hint=hint) from error
    except OSError as error:
        raise StoreError(f"the folder cannot be made: {error.strerror}", where=url) from error
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: DBAPIConnection, record: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions: `_on_begin` does
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _on_begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get("writes"):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})")


def _words(error: Exception) -> str:
    """The database's own words."""
    cause = error.orig if isinstance(error, OperationalError) and error.orig is not None else error
    return str(cause).splitlines()[0]
