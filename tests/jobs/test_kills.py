"""Workers that are killed at random moments: every job ends once, with the prompt of an undisturbed run."""

from __future__ import annotations

import random
from multiprocessing.context import ForkServerContext

import pytest

from softprompt.jobs.records import Hyperparameters, JobRecord, SoftPromptRequest
from softprompt.jobs.store import JobStore
from softprompt.prompts import store as prompts
from tests.jobs.conftest import new_job
from tests.support.job_workers import context, kill_in_the_middle, start, stop, wait_until


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return context()


def small(store: JobStore) -> JobRecord:
    own = SoftPromptRequest(method="prefix-tuning", n_tokens=4)
    return store.create_job(new_job(store, hyperparameters=Hyperparameters(30, 4), soft_prompt=own))


def digest(store: JobStore, job: JobRecord) -> str:
    """Of the finished prompt; its job must have ended once, and well."""
    done = store.job(job.id, "a")
    history = [event.message for event in store.events(job.id, "a", newest_first=False, limit=1000).items]
    assert done.status == "succeeded", history
    assert history.count("The job has successfully completed") == 1 and len(done.result_files) == 1
    steps = [each.step_number for each in store.checkpoints(job.id, "a", limit=100).items]
    assert len(set(steps)) == len(steps)
    lines = store.files.path(store.files.get(done.result_files[0], "a")).read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["step", *map(str, range(1, 121))]
    return prompts.load_card(store.home / ".." / "prompts" / done.prompt).sha256


def test_killed_jobs_end_as_if_nothing_had_happened(store: JobStore, processes: ForkServerContext) -> None:
    draw = random.Random(3)
    straight = small(store)
    kill_in_the_middle(processes, store, straight, 0, draw, 0)
    expected, killed = digest(store, straight), 0
    for _ in range(2):
        job = small(store)
        killed += kill_in_the_middle(processes, store, job, 1, draw, 1.5)
        assert digest(store, job) == expected
    assert killed
    visible = [path.name for path in (store.home / ".." / "prompts").iterdir() if not path.name.startswith(".")]
    assert all((store.home / ".." / "prompts" / name / prompts.CARD).is_file() for name in visible)


def test_pause_resume_and_cancel_within_a_step(store: JobStore, processes: ForkServerContext) -> None:
    long = SoftPromptRequest(method="prefix-tuning", n_tokens=4)
    job = store.create_job(new_job(store, hyperparameters=Hyperparameters(100_000, 4), soft_prompt=long))
    process = start(processes, store)
    wait_until(lambda: store.job(job.id, "a").step > 0)
    store.pause_job(job.id, "a")
    wait_until(lambda: store.job(job.id, "a").status == "queued", 60)
    before = store.job(job.id, "a")
    assert before.paused and before.step > 0
    store.resume_job(job.id, "a")
    wait_until(lambda: store.job(job.id, "a").step > before.step)
    stop(process)  # SIGTERM gives the job back
    given_back = store.job(job.id, "a")
    assert (given_back.status, given_back.crashes) == ("queued", 0)
    process = start(processes, store)
    wait_until(lambda: store.job(job.id, "a").status == "running")
    store.cancel_job(job.id, "a")
    wait_until(lambda: store.job(job.id, "a").status == "cancelled", 60)
    wait_until(lambda: not (store.runs / job.id).exists(), 60)
    assert process.is_alive()
    stop(process)
