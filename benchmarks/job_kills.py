"""Kills workers with SIGKILL at random moments: every job ends once, with the prompt of an undisturbed run.

python -m benchmarks.job_kills --kills 50
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from softprompt.jobs.records import Hyperparameters, JobBase, JobRecord, Quotas, SoftPromptRequest
from softprompt.jobs.store import JobStore
from softprompt.prompts import store as prompts
from tests.jobs.conftest import new_job
from tests.support.job_workers import context, kill_in_the_middle
from tests.support.saved import save_tiny

LONGEST_S = 2.5  # after a worker has taken the job


def make_store(folder: Path) -> JobStore:
    """A store for a random tiny model."""
    store = JobStore.open(str(folder / "jobs"))
    base = JobBase("tiny", str(save_tiny(folder / "base")), str(folder / "prompts"), dtype="float32")
    store.configure(base, Quotas(queued_jobs=0, running_jobs=0, stored_files=0))
    return store


def digest(store: JobStore, job: JobRecord) -> str:
    """Of the finished prompt; "" if the job did not end well, once."""
    done = store.job(job.id, None)
    messages = [event.message for event in store.events(job.id, None, limit=10_000).items]
    if done.status != "succeeded" or messages.count("The job has successfully completed") != 1:
        print(job.id, done.status, done.error, *messages, sep="\n    ")
        return ""
    return prompts.load_card(store.home.parent / "prompts" / done.prompt).sha256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)  # noqa: S311
    processes = context()
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder))
        asked, own = Hyperparameters(30, 4), SoftPromptRequest(method="prefix-tuning", n_tokens=4)

        def run(kills: int) -> tuple[JobRecord, int]:
            job = store.create_job(new_job(store, hyperparameters=asked, soft_prompt=own))
            return job, kill_in_the_middle(processes, store, job, kills, draw, LONGEST_S)

        begin = time.monotonic()
        straight = digest(store, run(0)[0])
        killed = jobs = same = 0
        while killed < options.kills:
            job, count = run(min(2, options.kills - killed))
            killed, jobs = killed + count, jobs + 1
            same += digest(store, job) == straight
            print(f"{killed} kills, {jobs} jobs, {same} as the undisturbed one", flush=True)
        seconds = time.monotonic() - begin
        print(f"{killed} kills in {seconds:.0f} s: {same} of {jobs} jobs ended once, with the same prompt")


if __name__ == "__main__":
    main()
