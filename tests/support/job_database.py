"""The database of a test's jobs: a SQLite file, or a new database of a server that an environment variable names.

SOFTPROMPT_TEST_DATABASE=postgresql+psycopg://USER:PASSWORD@HOST/NAME python -m pytest tests/jobs
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy

from softprompt.jobs.store import JobStore

VARIABLE = "SOFTPROMPT_TEST_DATABASE"


def opened(home: Path, now: Callable[[], float] = time.time) -> JobStore:
    """The store with this folder; the same one for every process that names the folder."""
    server = os.environ.get(VARIABLE)
    if server is None:
        return JobStore.open(str(home), now=now)
    name = f"test_{hashlib.sha256(str(home).encode()).hexdigest()[:16]}"
    url = sqlalchemy.make_url(server)
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        known = connection.execute(sqlalchemy.text("select 1 from pg_database where datname = :name"), {"name": name})
        if known.first() is None:
            connection.execute(sqlalchemy.text(f"create database {name}"))
    engine.dispose()
    return JobStore.open(url.set(database=name).render_as_string(hide_password=False), home, now)
