"""The queue: one worker a job, leases, fences, fairness, and what an owner wants of a running job."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from softprompt.errors import LeaseLostError
from softprompt.jobs.queue import MAX_CRASHES, JobQueue
from softprompt.jobs.records import RESULTS, JobBase, JobFailure, JobRecord, NewJob, Quotas
from softprompt.jobs.store import JobStore
from tests.jobs.test_store import add
from tests.support.job_database import opened


class Clock:
    """A clock that stands still until it is moved."""

    time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> JobStore:
    made = opened(tmp_path / "jobs", clock)
    made.configure(JobBase("tiny", "tiny-model", str(tmp_path / "prompts")), Quotas(queued_jobs=0))
    return made


def queue(store: JobStore, name: str = "w1") -> JobQueue:
    return JobQueue(store, name, lease_s=10)


def new(store: JobStore, owner: str = "a") -> JobRecord:
    return store.create_job(NewJob(owner, "tiny", add(store, owner).id))


def claimed(queue: JobQueue) -> JobRecord:
    job = queue.claim("tiny")
    assert job is not None
    return job


def test_many_workers_take_every_job_once(store: JobStore) -> None:
    store.configure(quotas=Quotas(queued_jobs=0, running_jobs=0))
    jobs = {new(store).id for _ in range(24)}
    taken = list[str]()

    def work(name: str) -> None:
        mine = JobQueue(opened(store.home), name)
        while (job := mine.claim("tiny")) is not None:
            taken.append(job.id)
        mine.store.close()

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 24 and set(taken) == jobs


def test_a_worker_takes_jobs_of_its_base_only(store: JobStore) -> None:
    new(store)
    assert queue(store).claim("other") is None


def test_the_owner_with_fewer_running_jobs_comes_first(store: JobStore) -> None:
    store.configure(quotas=Quotas(running_jobs=2))
    first, second, third = new(store), new(store), new(store)
    other = new(store, "b")
    mine = queue(store)
    assert [claimed(mine).id for _ in range(3)] == [first.id, other.id, second.id]
    assert mine.claim("tiny") is None, "a has two running ones"
    mine.fail(store.job(first.id, None), JobFailure("x", "y"))
    assert claimed(mine).id == third.id


def test_a_lease_that_expires_is_taken_over_and_fenced(store: JobStore, clock: Clock) -> None:
    new(store)
    job = claimed(queue(store))
    clock.time += 9
    assert queue(store).heartbeat(job) == ""
    clock.time += 9
    other = queue(store, "w2")
    assert other.claim("tiny") is None, "the heartbeat renewed it"
    clock.time += 2
    again = claimed(other)
    assert (again.id, again.attempt, again.crashes, again.worker) == (job.id, 2, 1, "w2")
    first = queue(store)
    for write in (
        lambda: first.heartbeat(job),
        lambda: first.order(job),
        lambda: first.event(job, "x"),
        lambda: first.progress(job, 3, None),
        lambda: first.checkpoint(job, 3, "x", {}),
        lambda: first.succeed(job, 1, {"x": b""}),
        lambda: first.fail(job, JobFailure("x", "y")),
        lambda: first.cancelled(job),
        lambda: first.release(job),
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert store.job(job.id, None) == again
    assert store.files.list(None, purpose=RESULTS).items == ()


def test_a_job_that_kills_its_workers_fails_with_that_reason(store: JobStore, clock: Clock) -> None:
    job, mine = new(store), queue(store)
    for _ in range(MAX_CRASHES):
        assert claimed(mine).id == job.id
        clock.time += 11
    assert mine.claim("tiny") is None
    ended = store.job(job.id, "a")
    assert ended.status == "failed" and ended.error is not None and "3 workers died" in ended.error.message


def test_a_job_that_gets_further_may_lose_many_workers(store: JobStore, clock: Clock) -> None:
    new(store)
    mine = queue(store)
    for step in range(1, 9):
        mine.progress(claimed(mine), step, None)
        clock.time += 11
    assert store.job(claimed(mine).id, None).step == 8


def test_what_an_owner_wants_of_a_running_job(store: JobStore, clock: Clock) -> None:
    job = new(store)
    mine = queue(store)
    running = claimed(mine)
    assert store.pause_job(job.id, "a").status == "running"
    assert mine.order(running) == mine.heartbeat(running) == "pause"
    mine.release(running)
    assert mine.claim("tiny") is None
    store.resume_job(job.id, "a")
    running = claimed(mine)
    assert running.crashes == 0 and running.attempt == 2
    assert store.cancel_job(job.id, "a").status == "running"
    assert mine.order(running) == "cancel"
    clock.time += 11  # the worker dies before it has seen it
    assert mine.claim("tiny") is None
    assert store.job(job.id, "a").status == "cancelled"


def test_a_finished_job_has_a_name_and_results(store: JobStore) -> None:
    file = add(store)
    job = store.create_job(NewJob("a", "tiny", file.id, suffix="bot"))
    store.files.delete(file.id, "a")
    mine = queue(store)
    running = claimed(mine)
    for _ in range(2):  # a resumed run validates a step again
        mine.checkpoint(running, 4, "ft-x-s4", {"valid_loss": 1.5})
    assert store.model("bot", "a") is None
    mine.succeed(running, 123, {"step_metrics.csv": b"step\n"})
    done = store.job(job.id, "a")
    assert (done.status, done.trained_tokens, done.fine_tuned_model) == ("succeeded", 123, job.model_name)
    result = store.files.get(done.result_files[0], "a")
    assert result.purpose == RESULTS and store.files.path(result).read_bytes() == b"step\n"
    assert not (store.files.contents.folder / running.training_sha256).exists()
    (checkpoint,) = store.checkpoints(job.id, "a").items
    assert checkpoint.metrics == {"valid_loss": 1.5}
    for name in (job.model_name, job.prompt, "bot"):
        found = store.model(name, "a")
        assert found is not None and (found.prompt, found.owner) == (job.prompt, "a")
        assert store.model(name, "b") is None
    found = store.model(checkpoint.fine_tuned_model_checkpoint, "a")
    assert found is not None and found.prompt == "ft-x-s4"
    assert [model.model for model in store.models("a")] == [job.model_name] and store.models("b") == ()
    assert mine.claim("tiny") is None
