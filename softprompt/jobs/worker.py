"""The worker: a process that takes jobs from a store, one at a time, on one base model that it keeps loaded.

    run_worker(JobStore.open("runs/jobs"), WorkerOptions(device="cuda"))

SIGTERM and Ctrl-C end it after the step that it is in; the job is given back with a checkpoint. Nothing is lost either
when it is killed: its lease expires, and another worker goes on.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import FrameType

import structlog

from softprompt.errors import ConfigError, WrongBaseError
from softprompt.jobs.inspections import Inspections
from softprompt.jobs.inspector import InspectionRunner, Inspector
from softprompt.jobs.queue import LEASE_S, JobQueue, worker_name
from softprompt.jobs.records import JobBase
from softprompt.jobs.runner import JobRunner
from softprompt.jobs.store import JobStore
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.models.sources import adapted_name
from softprompt.training.signals import OWN_STOP

log = structlog.get_logger("softprompt.jobs")

_IDLE_S = 0.5  # between two looks into the queue


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker runs on, and for how long.

    Attributes:
        device: auto, cpu, cuda, cuda:1, mps.
        once: end when no job waits.
        parent: process id of a server whose end is the worker's; 0 is none.
        lease_s: seconds without a sign of life after which another worker takes the job.
        base_model: what the base model is loaded from on this machine, if not from where the store says.
    """

    device: str = "auto"
    once: bool = False
    parent: int = 0
    lease_s: float = LEASE_S
    base_model: str = ""


class Worker:
    """Takes jobs until it is stopped.

    Args:
        load: loads the base model.
        inspect: makes inspections; None leaves them to other workers.
    """

    def __init__(
        self,
        store: JobStore,
        options: WorkerOptions,
        load: Callable[[JobBase, str], FrozenLM],
        inspect: Inspector | None = None,
    ) -> None:
        self.store, self.options = store, options
        self._inspect = inspect
        self.name = f"{worker_name(os.getpid())}{secrets.token_hex(2)}"
        self._load, self._stopping = load, False
        self._arrived = -1  # the end of a pipe with the numbers of all signals, whoever handles them

    def run(self) -> int:
        """Take jobs; returns how many were worked on.

        Raises ModelError and its like if the base model cannot be loaded, WrongBaseError if it is another one than the
        server's.
        """
        count = 0
        with self._handlers():
            base = self._wait_for_base()
            if base is None:
                return count
            lm = self._load(base, self.options.device)
            if base.fingerprint and lm.geometry.fingerprint != base.fingerprint:
                expected, got = base.fingerprint[:12], lm.geometry.fingerprint[:12]
                raise WrongBaseError(
                    "this is not the server's base model", where=base.model, expected=expected, got=got
                )
            queue = JobQueue(self.store, self.name, self.options.lease_s)
            runner = JobRunner(queue, lm, base, self.options.device)
            inspections = self._inspections(lm, base)
            log.info("worker ready", worker=self.name, base=base.name, device=str(lm.device))
            while not self._is_over():
                if inspections is not None and inspections.run_next():  # first: they are short, and somebody waits
                    count += 1
                elif (job := queue.claim(base.name)) is not None:
                    count += 1
                    if not runner.run(job):
                        self._stopping = True
                elif self.options.once:
                    break
                else:
                    time.sleep(_IDLE_S)
        log.info("worker ended", worker=self.name, jobs=count)
        return count

    def _inspections(self, lm: FrozenLM, base: JobBase) -> InspectionRunner | None:
        if self._inspect is None:
            return None
        made = Inspections(self.store)
        return InspectionRunner(made, lm, base, self.name, self.options.lease_s, self._inspect, self._is_over)

    def _wait_for_base(self) -> JobBase | None:
        """The base model that the store names; None if the worker is stopped before there is one."""
        while not self._is_over():
            if (base := self.store.base()) is not None:
                return replace(base, model=self.options.base_model or base.model)
            if self.options.once:
                hint = "start softprompt serve --jobs with this store first"
                raise ConfigError("the store names no base model yet", where=self.store.database.where, hint=hint)
            time.sleep(_IDLE_S)
        return None

    def _is_over(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self._stopping |= not {signal.SIGTERM, signal.SIGINT}.isdisjoint(os.read(self._arrived, 2**16))
        return self._stopping or bool(self.options.parent and os.getppid() != self.options.parent)

    @contextlib.contextmanager
    def _handlers(self) -> Iterator[None]:
        """A context in which SIGTERM and Ctrl-C stop the worker between two jobs, also if a job handled them."""
        self._arrived, written = os.pipe()
        os.set_blocking(self._arrived, False)
        os.set_blocking(written, False)
        numbers = (signal.SIGTERM, signal.SIGINT, OWN_STOP)  # the last one may come after the job that it stops
        previous = {number: signal.signal(number, _note) for number in numbers}
        pipe_before = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(pipe_before)
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(self._arrived)
            os.close(written)


def _note(number: int, frame: FrameType | None) -> None:
    """Take a signal, so that it neither ends the process nor raises; its number is in the pipe."""


def load_job_base(base: JobBase, device: str) -> FrozenLM:
    """The base model of a store. Raises as `load_model`."""
    name = adapted_name(base.model, base.adapter or None)
    return load_model(name, dtype=base.dtype, device=device, load_in=base.load_in or None)


def run_worker(store: JobStore, options: WorkerOptions, inspect: Inspector | None = None) -> int:
    """Take jobs until a signal comes, or with `once` until none waits; returns how many were worked on.

    Args:
        inspect: makes inspections; None leaves them to other workers.
    """
    return Worker(store, options, load_job_base, inspect).run()
