"""Many queued jobs of several owners and several workers: each job runs once.

python -m benchmarks.job_queue --jobs 200 --workers 4
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.job_kills import make_store
from softprompt.jobs.queue import LEASE_S
from softprompt.jobs.records import Hyperparameters, SoftPromptRequest
from tests.jobs.conftest import conversation_rows, new_job, put
from tests.support.job_workers import context, start, stop, wait_until

OWNERS = ("a", "b", "c")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    processes = context()
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder))
        asked, own = Hyperparameters(1, 8), SoftPromptRequest(method="prompt-tuning", n_tokens=2)
        files = {owner: put(store, conversation_rows(8), owner) for owner in OWNERS}
        jobs = []
        for number in range(options.jobs):
            owner = OWNERS[number % len(OWNERS)]
            own_files = {"training_file": files[owner], "validation_file": None}
            new = new_job(store, owner=owner, hyperparameters=asked, soft_prompt=own, **own_files)
            jobs.append(store.create_job(new).id)
        begin = time.monotonic()
        workers = [start(processes, store, LEASE_S) for _ in range(options.workers)]
        wait_until(lambda: all(store.job(job, None).is_finished for job in jobs), 36_000)
        seconds = time.monotonic() - begin
        for worker in workers:
            stop(worker)
        done = [store.job(job, None) for job in jobs]
        once = sum(job.status == "succeeded" and job.attempt == 1 for job in done)
        by_worker = sorted(Counter(job.worker for job in done).values())
        print(f"{once} of {len(jobs)} jobs succeeded in one attempt, in {seconds:.0f} s; by worker {by_worker}")


if __name__ == "__main__":
    main()
