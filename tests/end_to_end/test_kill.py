"""A training process that is killed at any moment leaves a run that can go on and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softprompt.files import read_json
from softprompt.training import checkpoint

ROOT = Path(__file__).parents[2]


class Runs:
    """Training runs in processes of their own; see `zygote.py`."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.zygote"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def start(self, folder: Path, **request: Any) -> int:
        """The process id of a new run."""
        assert self.process.stdin is not None
        request = {"resume": checkpoint.latest_step(folder) is not None} | request
        self.process.stdin.write(json.dumps({"folder": str(folder)} | request) + "\n")
        return int(next(m for m in self.messages() if m["kind"] == "started")["pid"])

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the run says, as it says it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            assert message["kind"] != "error", message
            yield message

    def rest(self) -> list[dict[str, Any]]:
        """Everything up to the end of the run, whose exit code comes last."""
        said = []
        for message in self.messages():
            said.append(message)
            if message["kind"] == "exit":
                break
        return said

    def finish(self, folder: Path, **request: Any) -> dict[str, Any]:
        """Run or resume to the end; its result."""
        self.start(folder, **request)
        *_, result, last = self.rest()
        assert last["code"] == 0
        return result


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    made = Runs()
    yield made
    made.process.communicate(timeout=60)  # closes its input, which ends it


@pytest.fixture(scope="module")
def straight(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The result of the run that nobody kills, and its identity."""
    folder = tmp_path_factory.mktemp("straight")
    result = runs.finish(folder)
    newest = folder / f"checkpoint-{result['step']:06d}" / "state.json"
    state: Any = read_json(newest)
    return result, state["run"]


def busy(seconds: float) -> None:
    """Let less than a step pass: kills must not always fall right after a report."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_killed_at_random_moments(runs: Runs, straight: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    wanted, identity = straight
    draw, reached = random.Random(0), 0
    for _ in range(5):
        pid, saved = runs.start(tmp_path), reached
        enough = draw.randint(1, 25)
        for seen, message in enumerate(runs.messages(), 1):
            saved = message["step"] if message["kind"] == "checkpoint" else saved
            if seen == enough:
                break
        busy(draw.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        rest = runs.rest()
        assert rest[-1]["code"] == -signal.SIGKILL, "it was still running"
        saved = max([saved, *(m["step"] for m in rest if m["kind"] == "checkpoint")])
        if saved:
            found = checkpoint.latest_checkpoint(tmp_path, identity)
            assert saved <= found.step <= saved + 1, "a checkpoint that was reported is there"
            reached = found.step
    assert 0 < reached < wanted["step"]
    assert runs.finish(tmp_path) == wanted
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f"checkpoint-{wanted['step'] - 1:06d}", f"checkpoint-{wanted['step']:06d}", "starts"]


def test_killed_at_every_write(runs: Runs, tmp_path: Path) -> None:
    """Just before each call that touches the disk, from the first checkpoint to the third."""
    wanted, number, died = runs.finish(tmp_path / "straight", steps=3), 0, True
    while died:
        number += 1
        folder = tmp_path / str(number)
        runs.start(folder, steps=3, die_at=number)
        said = runs.rest()
        died = said[-1]["code"] == -signal.SIGKILL
        reported = max((m["step"] for m in said if m["kind"] == "checkpoint"), default=0)
        assert (checkpoint.latest_step(folder) or 0) in (reported, reported + 1)
        assert runs.finish(folder, steps=3)["digest"] == wanted["digest"]
    assert number > 20, "there were that many writes"


def test_sigterm_saves_and_stops(runs: Runs, straight: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    wanted, identity = straight
    for number in (signal.SIGTERM, signal.SIGINT):
        pid = runs.start(tmp_path)
        for message in runs.messages():
            if message["kind"] == "step":
                break
        os.kill(pid, number)
        *_, result, last = runs.rest()
        assert last["code"] == 0
        assert result["stopped"] == number.name
        assert checkpoint.latest_checkpoint(tmp_path, identity).step == result["step"] < wanted["step"]
    assert runs.finish(tmp_path) == wanted
