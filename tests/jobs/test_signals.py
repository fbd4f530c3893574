"""A worker ends when its supervisor wants it to, even in the moment in which a job is canceled."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from softprompt.jobs import monitor, runner
from softprompt.jobs.queue import JobQueue
from softprompt.jobs.records import Hyperparameters, JobRecord, SoftPromptRequest
from softprompt.jobs.store import JobStore
from tests.jobs.conftest import new_job


def two_jobs(store: JobStore) -> tuple[JobRecord, JobRecord]:
    """The first is canceled in its first steps; the second must not be begun by a worker that was stopped."""
    long = SoftPromptRequest(method="prefix-tuning", n_tokens=4)
    first = store.create_job(new_job(store, hyperparameters=Hyperparameters(100_000, 4), soft_prompt=long))
    second = store.create_job(new_job(store, hyperparameters=Hyperparameters(1, 4), soft_prompt=long))
    return first, second


def cancel_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobQueue, "order", lambda self, job: "cancel" if self.store.job(job.id, None).step else "")


def statuses(store: JobStore, *jobs: JobRecord) -> list[str]:
    return [store.job(job.id, None).status for job in jobs]


def test_sigterm_after_a_canceled_job_ends_the_worker(
    store: JobStore, work: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, real = two_jobs(store), JobQueue.cancelled

    def cancelled(queue: JobQueue, job: JobRecord) -> None:
        real(queue, job)
        signal.raise_signal(signal.SIGTERM)

    cancel_when_it_runs(monkeypatch)
    monkeypatch.setattr(JobQueue, "cancelled", cancelled)
    assert work() == 1
    assert statuses(store, *jobs) == ["cancelled", "queued"]


@pytest.mark.parametrize("outside", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["loop", "before"])
def test_a_signal_in_the_moment_of_a_cancellation_ends_the_worker(
    phase: str,
    outside: signal.Signals,
    store: JobStore,
    work: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both arrive before Python handles either: in the steps, or while the rows are prepared."""
    jobs, kill = two_jobs(store), os.kill

    def both(pid: int, number: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {number, outside})
        kill(pid, number)
        kill(pid, outside)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number, outside})

    cancel_when_it_runs(monkeypatch)
    if phase == "before":
        monkeypatch.setattr(JobQueue, "order", lambda self, job: "cancel")
        monkeypatch.setattr(runner, "prepare_job", lambda *given, **named: [time.sleep(0.01) for _ in range(2000)])
    monkeypatch.setattr(monitor.os, "kill", both)
    assert work() == 1
    assert statuses(store, *jobs) == ["cancelled", "queued"]


def test_a_canceled_job_does_not_end_the_worker(
    store: JobStore, work: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = two_jobs(store)
    order = JobQueue.order
    monkeypatch.setattr(
        JobQueue,
        "order",
        lambda self, job: "cancel" if job.id == jobs[0].id and self.store.job(job.id, None).step else order(self, job),
    )
    assert work() == 2
    assert statuses(store, *jobs) == ["cancelled", "succeeded"]
