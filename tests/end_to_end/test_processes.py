"""Two processes train the prompt that one would: `accelerate launch`, as the README says, and `torchrun --fsdp`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.testing import assert_close

from softprompt.prompts import store
from softprompt.training.config import resolve
from softprompt.training.events import Event
from softprompt.training.run import FitResult, fit, prepare
from softprompt.training.run_log import read_log
from tests.support.rows import labelled, write_jsonl
from tests.support.saved import save_tiny, settings

STEPS = 6


def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: int) -> FitResult:
    """The run in this process. With time the processes agree by how many rows they validate."""
    base = save_tiny(tmp_path / "base")
    config = settings(base, tmp_path, train__steps=STEPS, train__minutes=60.0, **changes)
    write_jsonl(tmp_path / "data" / "validation.jsonl", *labelled(12))
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "one"))
    return fit(prepare(config))


def launched(tmp_path: Path, launcher: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`softprompt train` by a launcher of processes."""
    command = [sys.executable, "-m", *launcher, "-m", "softprompt.cli.main", "train", *arguments]
    environment = os.environ | {"SOFTPROMPT_HOME": str(tmp_path / "two"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def check_same(one: Path, two: Path) -> None:
    first, _ = store.load(one)
    second, card = store.load(two)
    assert_close(second.tensors(), first.tensors(), rtol=1e-4, atol=1e-5)
    assert card.metrics["steps"] == STEPS
    log = read_log(two.parent / ".runs" / two.name / "metrics.jsonl")
    assert [event["step"] for event in log if event["event"] == "step"] == list(range(1, STEPS + 1))


def test_two_processes_do_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = alone(tmp_path, monkeypatch).run
    launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = launched(tmp_path, launcher, str(run / "config.yaml"))
    assert done.stdout.count("saved ") == 1, "one of them talks"
    check_same(tmp_path / "one" / "tone", tmp_path / "two" / "tone")


def test_two_processes_with_parts_of_the_base_go_on_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows in two parts: the second process has no row in the second part, where its weights are needed."""
    changes = {"train__batch_size": 3, "train__save_every": 3, "train__accumulate": 2}
    run = alone(tmp_path, monkeypatch, **changes).run

    def stop(event: Event) -> None:
        if event.kind == "checkpoint":
            raise KeyboardInterrupt

    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "two"))
    with pytest.raises(KeyboardInterrupt):
        fit(prepare(resolve({}, run / "config.yaml")), report=stop)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = launched(tmp_path, launcher, str(run / "config.yaml"), "--fsdp", "--resume")
    assert "sharded over 2 processes" in done.stdout
    assert done.stdout.count("saved ") == 1, "one of them talks"
    check_same(tmp_path / "one" / "tone", tmp_path / "two" / "tone")
