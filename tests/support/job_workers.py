"""Worker processes that can be killed: forks of a process that has imported the library once."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import torch

from softprompt.jobs.records import JobRecord
from softprompt.jobs.store import JobStore
from softprompt.jobs.worker import WorkerOptions, run_worker
from softprompt.report.saved_report import inspect_saved
from tests.support.job_database import opened

LEASE_S = 1.0  # short, so that a killed worker's job is free soon


def context() -> ForkServerContext:
    """Forks begin after this module's imports, and after those that an evaluation makes."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([__name__, "matplotlib.pyplot", "sacrebleu", "rouge_score.rouge_scorer"])
    return made


def work(place: str, lease_s: float) -> None:
    """Take jobs until SIGTERM."""
    torch.set_num_threads(1)
    run_worker(opened(Path(place)), WorkerOptions("cpu", lease_s=lease_s), inspect_saved)


def start(processes: ForkServerContext, store: JobStore, lease_s: float = LEASE_S) -> ForkServerProcess:
    """A new worker of a store."""
    process = processes.Process(target=work, args=(str(store.home), lease_s), daemon=True)
    process.start()
    return process


def stop(process: ForkServerProcess) -> None:
    """SIGTERM, which must end it."""
    process.terminate()
    process.join(120)
    assert process.exitcode == 0, process.exitcode


def wait_until(is_true: Callable[[], bool], seconds: float = 240) -> None:
    """Look every hundredth of a second."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def has_begun(job: JobRecord, attempt: int) -> bool:
    """Whether an attempt after this one runs, or the job has ended."""
    return job.attempt > attempt or job.is_finished


def kill_in_the_middle(
    processes: ForkServerContext, store: JobStore, job: JobRecord, kills: int, draw: random.Random, longest: float
) -> int:
    """Run a job to its end, with workers that are killed at random moments; returns how many were."""
    killed = 0
    while True:
        process = start(processes, store)
        if killed == kills:
            wait_until(lambda: store.job(job.id, None).is_finished)
            stop(process)
            return killed
        attempt = store.job(job.id, None).attempt
        wait_until(
            lambda before=attempt: store.job(job.id, None).attempt > before or store.job(job.id, None).is_finished
        )
        time.sleep(draw.uniform(0, longest))
        process.kill()
        process.join()
        if store.job(job.id, None).is_finished:
            return killed
        killed += 1
