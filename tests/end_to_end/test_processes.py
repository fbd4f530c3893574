"""Two processes train the prompt that one would: `accelerate launch`, as the README says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.testing import assert_close

from softprompt.prompts import store
from softprompt.training.run import fit, prepare
from softprompt.training.run_log import read_log
from tests.support.rows import labelled, write_jsonl
from tests.support.saved import save_tiny, settings

STEPS = 6


def test_two_processes_do_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny(tmp_path / "base")
    config = settings(base, tmp_path, train__steps=STEPS, train__minutes=60.0)  # with time they agree by how many
    write_jsonl(tmp_path / "data" / "validation.jsonl", *labelled(12))  # rows they judge
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "one"))
    alone = fit(prepare(config))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "softprompt.cli.main", "train", str(alone.run / "config.yaml")]
    environment = os.environ | {"SOFTPROMPT_HOME": str(tmp_path / "two"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved ") == 1, "one of them talks"
    folder = tmp_path / "two" / "tone"
    one, _ = store.load(tmp_path / "one" / "tone")
    two, card = store.load(folder)
    assert_close(two.tensors(), one.tensors(), rtol=1e-4, atol=1e-5)
    assert card.metrics["steps"] == STEPS
    steps = [
        event["step"]
        for event in read_log(folder.parent / ".runs" / "tone" / "metrics.jsonl")
        if event["event"] == "step"
    ]
    assert steps == list(range(1, STEPS + 1))
