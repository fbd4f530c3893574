"""A server with fine-tuning jobs, and what its clients send."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import openai

from softprompt.jobs.queue import JobQueue
from softprompt.jobs.records import JobBase, JobRecord, NewJob, Quotas
from softprompt.jobs.store import JobStore
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.report.page import page_hashes
from softprompt.server.api_keys import ApiKeys
from softprompt.server.catalogue import Catalogue
from softprompt.server.job_prompts import JobPrompts
from softprompt.server.limits import Limits
from softprompt.server.routes.studio import ReportHashes
from tests.support.live_server import ADMIN, BASE, TEMPLATES, USER, Live, live, save_prompt
from tests.support.tiny import tiny_lm

OTHER = "the-key-of-another-user"
ROWS = "".join(json.dumps({"prompt": f"Say {word}", "completion": word}) + "\n" for word in "abcdefgh").encode()


@dataclass
class Tuned:
    """A running server with jobs.

    Attributes:
        prompts: the folder that jobs write soft prompts to.
        lm: its base model.
    """

    live: Live
    store: JobStore
    prompts: Path
    lm: FrozenLM

    def client(self, key: str = USER) -> openai.OpenAI:
        """OpenAI's own."""
        return openai.OpenAI(base_url=f"{self.live.url}/v1", api_key=key, max_retries=0, timeout=120)


def wait_for(condition: Callable[[], bool]) -> None:
    """Fails after ten seconds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def tuned(
    folder: Path,
    public: Path,
    *,
    shared: bool = False,
    quotas: Quotas | None = None,
    keys: ApiKeys | None = None,
    limits: Limits | None = None,
    origins: tuple[str, ...] = (),
    model: str = "",
    studio: bool = False,
) -> Iterator[Tuned]:
    """A server for the tiny model, or one on disk, whose jobs lie in a folder."""
    store, prompts = JobStore.open(str(folder / "jobs")), folder / "jobs" / "prompts"
    prompts.mkdir(parents=True)
    store.configure(JobBase(BASE, model or BASE, str(prompts), dtype="float32"), quotas or Quotas())
    lm = load_model(model, dtype="float32", device="cpu") if model else tiny_lm("llama", bos=True)
    jobs = JobPrompts(store, Catalogue(lm.geometry, prompts, {}), shared=shared)
    keys = ApiKeys([USER, OTHER], [ADMIN]) if keys is None else keys
    try:
        with live(
            public,
            keys=keys,
            limits=limits,
            origins=origins,
            lm=lm,
            jobs=store,
            job_prompts=jobs,
            studio=studio,
            reports=ReportHashes(*page_hashes()) if studio else None,
        ) as server:
            yield Tuned(server, store, prompts, lm)
            server.idle()
    finally:
        store.close()


def work(server: Tuned, job_id: str, end: Callable[[JobQueue, JobRecord], None]) -> None:
    """Take the job as a worker does, and end it; others that wait are cancelled first."""
    for waiting in server.store.jobs(None, limit=100).items:
        if waiting.id != job_id and not waiting.is_finished:
            server.store.cancel_job(waiting.id, None)
    queue = JobQueue(server.store, "a-worker")
    job = queue.claim(BASE)
    assert job is not None and job.id == job_id
    end(queue, job)


def succeed(server: Tuned, job_id: str, template: str = "talk") -> str:
    """Finish the job with a soft prompt and a checkpoint; its model's name."""

    work(server, job_id, lambda queue, job: _finish(server, queue, job, template))
    name = server.store.job(job_id, None).fine_tuned_model
    assert name is not None
    return name


def succeed_with(server: Tuned, suffix: str, template: str = "talk") -> str:
    """A finished job of the user's key, although real workers may take jobs here, too; its model's name."""
    caller = ApiKeys([USER]).caller(f"Bearer {USER}")
    assert caller is not None
    with server.store.files.upload() as upload:
        upload.write(ROWS)
        file = server.store.files.add(caller.owner, "fine-tune", f"{suffix}.jsonl", upload, ROWS.count(b"\n"))
    queue = JobQueue(server.store, "a-worker")
    while True:
        job = server.store.create_job(NewJob(caller.owner, BASE, file.id, suffix=suffix))
        claimed = queue.claim(BASE)
        if claimed is not None and claimed.id == job.id:
            _finish(server, queue, claimed, template)
            return claimed.model_name
        server.store.cancel_job(job.id, None)  # a worker was faster, or an older job waits
        if claimed is not None:
            queue.release(claimed)


def _finish(server: Tuned, queue: JobQueue, job: JobRecord, template: str) -> None:
    form, written = TEMPLATES[template]
    save_prompt(server.prompts / job.prompt, form, written, 3, server.lm)
    save_prompt(server.prompts / f"{job.prompt}-7", form, written, 4, server.lm)
    queue.event(job, "Step 7", kind="metrics", data={"step": 7, "train_loss": 0.5})
    queue.checkpoint(job, 7, f"{job.prompt}-7", {"step": 7.0, "valid_loss": 0.25})
    queue.succeed(job, 123, {"results.csv": b"step,train_loss\n7,0.5\n"})
