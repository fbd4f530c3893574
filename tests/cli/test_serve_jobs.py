"""`softprompt serve --jobs` as a user runs it: a worker beside it, killed once; `softprompt jobs` follows."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from softprompt.errors import JobError, NotFoundError, UnreachableError
from softprompt.jobs.store import JobStore
from softprompt.report.page import page_hashes
from tests.jobs.conftest import conversation_rows
from tests.support.job_workers import wait_until
from tests.support.saved import save_tiny
from tests.support.shell import done, refused

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, JobStore]]:
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    base = save_tiny(folder / "tiny")
    (folder / "prompts").mkdir()
    command = [
        sys.executable,
        "-m",
        "softprompt",
        "serve",
        "--model",
        str(base),
        "--port",
        str(port),
        "--dtype",
        "float32",
    ]
    command += ["--prompts-dir", str(folder / "prompts"), "--jobs", "--store", str(folder / "jobs"), "--device", "cpu"]
    command += ["--worker-device", "cpu", "--limit", "running_jobs=2", "--limit", "drain_s=20", "--studio"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=log)
        store = JobStore.open(str(folder / "jobs"))
        try:
            wait_until(lambda: process.poll() is None and "listening" in (folder / "log").read_text(), 120)
            yield f"http://127.0.0.1:{port}", store
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert not any(alive(int(pid)) for pid in worker_pids(folder / "log")), "workers end with the server"
        finally:
            process.kill()
            process.wait()
            store.close()


def worker_pids(log: Path) -> list[str]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [str(line["pid"]) for line in lines if line.get("event") == "worker started"]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_from_upload_to_chat_although_the_worker_is_killed(server: tuple[str, JobStore]) -> None:
    url, store = server
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        journey(client, url, store)


def journey(client: openai.OpenAI, url: str, store: JobStore) -> None:
    file = client.files.create(file=("rows.jsonl", conversation_rows(16)), purpose="fine-tune")
    settings: Any = {"n_epochs": 50, "batch_size": 1}
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file.id,
        suffix="bot",
        method={"type": "supervised", "supervised": {"hyperparameters": settings}},
        extra_body={"soft_prompt": {"method": "prompt-tuning", "n_tokens": 3}},
    )
    wait_until(lambda: store.job(job.id, None).step > 0, 120)
    os.kill(int(store.job(job.id, None).worker.split("-")[-2]), signal.SIGKILL)
    printed = done("jobs", "events", job.id, "--follow", "--url", url).stdout
    assert "The worker was lost" in printed and "The job has successfully completed" in printed
    assert printed.count("successfully completed") == 1
    named = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert named and named in done("jobs", "show", job.id, "--url", url).stdout
    assert job.id in done("jobs", "list", "--url", f"{url}/v1").stdout
    for model in (named, "bot"):
        asked = [{"role": "user", "content": "color 3?"}]
        answer = client.chat.completions.create(model=model, messages=asked, max_tokens=4)  # pyright: ignore
        assert answer.usage is not None and answer.usage.completion_tokens
    assert isinstance(refused("jobs", "cancel", job.id, "--url", url), JobError)


def test_the_studio_is_there(server: tuple[str, JobStore]) -> None:
    """With what the reports of its workers hold in its content policy."""
    with urllib.request.urlopen(f"{server[0]}/studio/", timeout=60) as reply:
        assert b"<title>softprompt studio</title>" in reply.read()
        policy = reply.headers["content-security-policy"]
    assert all(part in policy for part in page_hashes())


def test_jobs_of_nowhere(server: tuple[str, JobStore]) -> None:
    assert isinstance(refused("jobs", "show", "ftjob-none", "--url", server[0]), NotFoundError)
    begin = time.monotonic()
    assert isinstance(refused("jobs", "list", "--url", f"http://127.0.0.1:{free_port()}"), UnreachableError)
    assert time.monotonic() - begin < 10
