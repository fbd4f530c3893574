"""Makes the inspections of a store on a worker's base model, one at a time.

What an inspection is made of is not known here: the caller gives the function that makes one.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TypeAlias

import structlog
from sqlalchemy.exc import SQLAlchemyError

from softprompt.errors import LeaseLostError, SoftpromptError, is_out_of_memory
from softprompt.jobs.inspection_records import InspectionInput, InspectionRecord, InspectionResult
from softprompt.jobs.inspections import Inspections
from softprompt.jobs.records import JobBase, JobFailure
from softprompt.models.frozen_lm import FrozenLM

Inspector: TypeAlias = Callable[[FrozenLM, InspectionInput, Callable[[str], None]], InspectionResult]

log = structlog.get_logger("softprompt.jobs")

_BEATS = 4  # renewals in a lease
_INTERNAL = JobFailure("internal_error", "an error in the server, whose log says more")
_ROWS = "rows.jsonl"


@dataclass(frozen=True)
class InspectionRunner:
    """Makes inspections.

    Attributes:
        worker: unique name of the worker.
        lease_s: seconds without a sign of life after which another worker may take the inspection.
        inspect: makes one; it calls what it is given with the name of each reading that begins.
        is_over: whether the worker shall end; then the inspection is given back before its next reading.
    """

    inspections: Inspections
    lm: FrozenLM
    base: JobBase
    worker: str
    lease_s: float
    inspect: Inspector
    is_over: Callable[[], bool]

    def run_next(self) -> bool:
        """Make the oldest inspection that waits; False if none does."""
        record = self.inspections.claim(self.base.name, self.worker, self.lease_s)
        if record is None:
            return False
        bound = log.bind(inspection=record.id, attempt=record.attempt)
        bound.info("inspection started")
        try:
            self._run(record)
        except LeaseLostError as error:
            bound.info("inspection left", reason=error.what)
        except _StoppedError:
            self.inspections.release(record)
        else:
            bound.info("inspection ended")
        return True

    def _run(self, record: InspectionRecord) -> None:
        def begins(section: str) -> None:
            if self.is_over():
                raise _StoppedError
            self.inspections.progress(record, section)

        try:
            with _Renewal(self.inspections, record, self.lease_s), TemporaryDirectory() as folder:
                result = self.inspect(self.lm, self._input(record, Path(folder)), begins)
        except (LeaseLostError, _StoppedError, SQLAlchemyError):
            raise
        except SoftpromptError as error:
            self.inspections.fail(record, JobFailure("inspection_failed", self._words(error)))
        except Exception as error:
            log.exception("inspection failed", inspection=record.id)
            failure = JobFailure("out_of_memory", "out of memory") if is_out_of_memory(error) else _INTERNAL
            self.inspections.fail(record, failure)
        else:
            self.inspections.succeed(record, result)

    def _input(self, record: InspectionRecord, scratch: Path) -> InspectionInput:
        source = Path(record.prompt) if "/" in record.prompt else Path(self.base.prompts) / record.prompt
        rows = None
        if record.sha256:  # under a name that says what it is, as readers of rows want
            rows = scratch / _ROWS
            shutil.copyfile(self.inspections.store.files.contents.path(record.sha256), rows)
        return InspectionInput(source, record.model, rows, record.sections, record.limit)

    def _words(self, error: SoftpromptError) -> str:
        """A mistake in words for the owner: no path of this machine."""
        parts = [error.what, *(f"{key} {value}" for key in ("expected", "got") if (value := getattr(error, key)))]
        words = "; ".join(parts)
        for folder in (Path(self.base.prompts), self.inspections.store.home):
            words = words.replace(f"{folder}/", "")
        return words


class _StoppedError(Exception):
    """Raised between two readings, when the worker shall end."""


class _Renewal:
    """A context in which a thread renews the lease of an inspection; what is lost is noticed at the next reading."""

    def __init__(self, inspections: Inspections, record: InspectionRecord, lease_s: float) -> None:
        self._inspections, self._record = inspections, record
        self._lease_s, self._done = lease_s, threading.Event()
        self._thread = threading.Thread(target=self._renew, name="renewal", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._done.wait(self._lease_s / _BEATS):
            try:
                self._inspections.renew(self._record, self._lease_s)
            except LeaseLostError:
                return
            except SQLAlchemyError as error:  # busy or away: what counts is the lease
                log.warning("the jobs' database does not answer", error=type(error).__name__)
