"""Watches a running job from a thread: renews its lease, and stops the main thread when its owner wants it to."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Literal, TypeAlias

import structlog
from sqlalchemy.exc import SQLAlchemyError

from softprompt.errors import LeaseLostError
from softprompt.jobs.queue import JobQueue
from softprompt.jobs.records import JobRecord
from softprompt.training.signals import OWN_STOP

log = structlog.get_logger("softprompt.jobs")

StopReason: TypeAlias = Literal["", "cancel", "pause", "lost"]

_POLL_S = 0.25
_BEATS = 4  # heartbeats in a lease


class Monitor:
    """A context in which a job is watched.

    The main thread gets `OWN_STOP`, which training handles between two steps; `reason` then says why. A stop without a
    reason came from elsewhere.
    """

    def __init__(self, queue: JobQueue, job: JobRecord) -> None:
        self.reason: StopReason = ""
        self._queue, self._job = queue, job
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        beat = time.monotonic()
        while not self._done.wait(min(_POLL_S, self._queue.lease_s / _BEATS)):
            reason: StopReason = ""
            try:
                if time.monotonic() - beat > self._queue.lease_s / _BEATS:
                    reason, beat = self._queue.heartbeat(self._job), time.monotonic()
                else:
                    reason = self._queue.order(self._job)
            except LeaseLostError:
                reason = "lost"
            except SQLAlchemyError as error:  # busy or away: what counts is the lease
                log.warning("the jobs' database does not answer", error=type(error).__name__)
                reason = "lost" if time.monotonic() - beat > self._queue.lease_s else ""
            if reason and not self.reason and not self._done.is_set():
                self.reason = reason
                os.kill(os.getpid(), OWN_STOP)
            if reason == "lost":
                return
