"""OpenAI's documented fine-tuning script, unmodified and in a process of its own, with a worker that trains."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from softprompt.jobs.worker import Worker, WorkerOptions, load_job_base
from softprompt.prompts import store as prompts
from tests.support.fine_tuning import tuned
from tests.support.live_server import BASE, USER
from tests.support.saved import save_tiny

SCRIPT = Path(__file__).parents[2] / "examples" / "jobs_with_openai_client" / "jobs_with_openai_client.py"
LONGEST_S = 240


def test_the_script_trains_and_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "public").mkdir()
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path))  # which the worker sets, and the test puts back
    model = str(save_tiny(tmp_path / "base", "llama"))
    with tuned(tmp_path, tmp_path / "public", model=model) as server:
        worker = Worker(server.store, WorkerOptions("cpu", once=True), load_job_base)
        keys = {"OPENAI_BASE_URL": f"{server.live.url}/v1", "OPENAI_API_KEY": USER}
        command = [sys.executable, str(SCRIPT), "--model", BASE, "--epochs", "1"]
        process = subprocess.Popen(
            command, env={**os.environ, **keys}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        end = time.monotonic() + LONGEST_S
        while process.poll() is None:
            assert time.monotonic() < end
            worker.run()
            time.sleep(0.2)
        out, err = process.communicate()
        assert process.returncode == 0, (out, err)
        (job,) = server.store.jobs(None).items
        lines = out.splitlines()
        assert any(line.startswith(f"{job.fine_tuned_model}: ") for line in lines)
        assert lines[-1].endswith("from the upload to the answer")
        assert any(line.startswith("step,") for line in lines)
        card = prompts.load_card(server.prompts / job.prompt)
        assert str(server.store.home) not in card.model_dump_json()
