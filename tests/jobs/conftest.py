"""A store of jobs for a tiny model on disk, and workers in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from softprompt.jobs.records import JobBase, NewJob, Quotas
from softprompt.jobs.store import JobStore
from softprompt.jobs.worker import Worker, WorkerOptions, load_job_base
from softprompt.models.frozen_lm import FrozenLM
from tests.support.job_database import opened
from tests.support.saved import save_tiny

WORDS = ["red", "blue", "green", "white", "black", "brown", "pink", "grey"]


def conversation_rows(count: int, start: int = 0) -> bytes:
    """Rows as OpenAI's guide has them."""
    rows = [
        [
            {"role": "user", "content": f"color {i}?"},
            {"role": "assistant", "content": WORDS[i % len(WORDS)]},
        ]
        for i in range(start, start + count)
    ]
    return "".join(json.dumps({"messages": row}) + "\n" for row in rows).encode()


def put(store: JobStore, content: bytes, owner: str = "a", n_rows: int = 1) -> str:
    """The id of a new file."""
    with store.files.upload() as upload:
        upload.write(content)
        return store.files.add(owner, "fine-tune", "rows.jsonl", upload, n_rows).id


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture
def store(tmp_path: Path, tiny_base: Path) -> JobStore:
    made = opened(tmp_path / "jobs")
    base = JobBase("tiny", str(tiny_base), str(tmp_path / "prompts"), dtype="float32")
    made.configure(base, Quotas())
    return made


@pytest.fixture
def work(store: JobStore, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Runs all jobs that wait."""
    monkeypatch.setenv("SOFTPROMPT_HOME", str(store.home))  # which the worker sets, and the test puts back
    loaded = list[FrozenLM]()

    def load(base: JobBase, device: str) -> FrozenLM:
        if not loaded:
            loaded.append(load_job_base(base, device))
        return loaded[0]

    return lambda: Worker(store, WorkerOptions("cpu", once=True, lease_s=60), load).run()


def new_job(store: JobStore, **changes: object) -> NewJob:
    """A small job with validation rows."""
    files = {
        "training_file": put(store, conversation_rows(16)),
        "validation_file": put(store, conversation_rows(4, 16)),
    }
    return NewJob(**({"owner": "a", "model": "tiny", "suffix": "bot"} | files | changes))  # pyright: ignore
