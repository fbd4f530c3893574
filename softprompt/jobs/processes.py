"""Worker processes beside a server: started, started again when they end, and ended with the server."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import structlog
from sqlalchemy.exc import SQLAlchemyError

from softprompt.models.cores import THREADS_VARIABLE, usable_cores

log = structlog.get_logger("softprompt.jobs")

_POLL_S = 0.5
_STEADY_S = 60.0  # a worker that ran so long did not fail at its start
_LONGEST_WAIT_S = 60.0  # before a worker that keeps failing is started again
_SECRETS = ("SOFTPROMPT_API_KEYS", "SOFTPROMPT_ADMIN_KEYS")  # which workers need not know


class WorkerProcesses:
    """A context in which worker processes run.

    Args:
        options: of `softprompt work`, the same for all.
        count: number of processes.
        grace_s: seconds for a worker to save its job at the end; then it is killed, and the job goes on elsewhere.
        on_end: called with the process id of a worker that has ended.
    """

    def __init__(
        self, options: Sequence[str], count: int, grace_s: float, on_end: Callable[[int], None] = lambda pid: None
    ) -> None:
        self._command = [sys.executable, "-m", "softprompt", "work", *options, "--parent", str(os.getpid())]
        self._grace_s, self._done = grace_s, threading.Event()
        self._on_end = on_end
        self._slots = [_Slot() for _ in range(count)]
        self._thread = threading.Thread(target=self._watch, name="workers", daemon=True)
        # Workers on the CPU leave the server a share of the cores.
        threads = max(1, usable_cores() // (count + 1))
        kept = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        self._environment = {THREADS_VARIABLE: str(threads), **kept}

    def __enter__(self) -> WorkerProcesses:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        processes = [slot.process for slot in self._slots if slot.process is not None]
        for process in processes:
            process.terminate()
        until = time.monotonic() + self._grace_s
        for process in processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("worker killed", pid=process.pid)
                process.kill()
                process.wait()
            self._ended(process.pid)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run."""
        return [slot.process.pid for slot in self._slots if slot.process is not None and slot.process.poll() is None]

    def _watch(self) -> None:
        while True:
            for slot in self._slots:
                self._keep_running(slot)
            if self._done.wait(_POLL_S):
                return

    def _keep_running(self, slot: _Slot) -> None:
        now = time.monotonic()
        if slot.process is not None:
            code = slot.process.poll()
            if code is None:
                return
            slot.failures = 0 if now - slot.started > _STEADY_S else slot.failures + 1
            slot.not_before = now + min(_LONGEST_WAIT_S, 2.0**slot.failures - 1)
            log.warning("worker ended", pid=slot.process.pid, code=code, again_in_s=round(slot.not_before - now))
            self._ended(slot.process.pid)
            slot.process = None
        if now >= slot.not_before:
            slot.process = subprocess.Popen(  # noqa: S603 - our own command
                self._command, env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
            slot.started = now
            log.info("worker started", pid=slot.process.pid)

    def _ended(self, pid: int) -> None:
        try:
            self._on_end(pid)
        except SQLAlchemyError as error:  # then its leases expire by themselves
            log.warning("the jobs' database does not answer", error=type(error).__name__)


class _Slot:
    """The place of one worker."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.started, self.not_before = 0.0, 0.0
        self.failures = 0
