"""Runs that release 0.1 began and did not finish: they resume, by their command and by their own config.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from softprompt.training.events import trial_of
from softprompt.training.run_log import read_log
from tests.support.old_release import ARTIFACTS, EXPECTED, assert_like, copy_artifacts, run_old

RUNS = EXPECTED["unfinished"]
BY_CONFIG = ("blend", "tasks", "guide")  # of one task, of several in their order, of a distillation
WAYS = [*((name, "command") for name in RUNS), *((name, "by_config") for name in BY_CONFIG)]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_it_ends_as_it_would_have(name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = RUNS[name]
    folder = copy_artifacts(tmp_path / "copy", "unfinished", monkeypatch)
    command = [*expected["command"], "--resume"] if way == "command" else expected["by_config"]
    _, renamed = run_old(*command)
    assert all("is now" in message or "is ignored by" in message for message in renamed)
    assert any("softprompt distill" in message for message in renamed) == (command[0] == "distil")
    home = folder / "unfinished"
    assert_prompts(home, expected["prompts"])
    assert_events(home / ".runs" / name / "metrics.jsonl", expected["events"])
    for file in {"sweep", "fidelity"} & expected.keys():
        assert_like(json.loads((home / ".runs" / name / f"{file}.json").read_text()), expected[file], 1e-3)
    if "router" in expected:
        weights = load_file(home / name / "router.safetensors")["weights"].tolist()
        assert_like(weights, expected["router"], 1e-4)
    assert set(expected["left_in_run"]) <= {path.name for path in (home / ".runs" / name).iterdir()}


def assert_prompts(home: Path, expected: dict[str, Any]) -> None:
    """The saved soft prompts have the old release's tensors and metrics."""
    for name, wanted in expected.items():
        card = json.loads((home / name / "card.json").read_text(encoding="utf-8"))
        assert (card["form"], card["n_tokens"]) == (wanted["form"], wanted["n_tokens"])
        assert_like(card["metrics"], wanted["metrics"], 1e-3)
        tensors = load_file(home / name / "prompt.safetensors")
        assert_close(tensors, load_file(ARTIFACTS / "resumed" / name / "prompt.safetensors"), rtol=1e-4, atol=1e-4)


def assert_events(path: Path, expected: list[dict[str, Any]]) -> None:
    """The same steps and validations, in the same order, those before the checkpoint included."""
    lines = [line for line in read_log(path) if line["event"] in {"step", "validation", "end"}]
    assert [key_of(line) for line in lines] == [key_of(line) for line in expected]
    for line, wanted in zip(lines, expected, strict=True):
        numbers = {name: value for name, value in wanted.items() if name != "candidate"}
        assert_like(line, numbers, 1e-3, f"step {line['step']} {trial_of(line)}")


def key_of(line: dict[str, Any]) -> tuple[str, int, str]:
    return line["event"], line["step"], trial_of(line)
