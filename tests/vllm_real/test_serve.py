"""`softprompt serve --engine vllm` from the command line to an answer, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import IO

from softprompt.models.frozen_lm import FrozenLM
from tests.support.live_server import TEMPLATES, save_prompt
from tests.vllm_real.tiny import BLOCK

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; sys.argv[0] = 'softprompt'; from softprompt.cli.main import run; run()"
OPTIONS = (
    "enforce_eager=true",
    f"block_size={BLOCK}",
    "max_num_seqs=8",
    "max_model_len=256",
    "distributed_executor_backend=uni",
)


def started(base: Path, shelf: Path, *more: str) -> subprocess.Popen[str]:
    options = ["--model", str(base), "--prompts-dir", str(shelf), "--dtype", "float32", "--engine", "vllm"]
    options += [word for option in OPTIONS for word in ("--engine-option", option)]
    command = [sys.executable, "-c", PROGRAM, "serve", *options, *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def shelf_of(folder: Path, lm: FrozenLM) -> Path:
    for seed, name in enumerate(("review", "question"), 1):
        save_prompt(folder / "shelf" / name, *TEMPLATES[name], seed, lm)
    return folder / "shelf"


def test_check(base: Path, lm: FrozenLM, tmp_path: Path) -> None:
    with started(base, shelf_of(tmp_path, lm), "--check", "--served-name", "base") as process:
        said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert [line.split() for line in said.splitlines()] == [["ok", "base"], ["ok", "question"], ["ok", "review"]]


def test_an_answer_and_the_end(base: Path, lm: FrozenLM, tmp_path: Path) -> None:
    with started(base, shelf_of(tmp_path, lm), "--port", "0", "--log", "json") as process:
        assert process.stderr is not None
        port = _port(process.stderr)
        body = json.dumps({"model": "review", "prompt": "A", "temperature": 0, "max_tokens": 4}).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as reply:
            assert json.load(reply)["usage"]["completion_tokens"] == 4
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 0, rest
    events = [json.loads(line)["event"] for line in rest.splitlines() if line.startswith('{"')]
    assert events == ["request", "draining", "stopped"]


def _port(stderr: IO[str]) -> int:
    """Of the line that says where the server listens."""
    seen = []
    for line in stderr:
        seen.append(line)
        if line.startswith("{") and (event := json.loads(line))["event"] == "listening":
            return event["port"]
    raise AssertionError("".join(seen))
