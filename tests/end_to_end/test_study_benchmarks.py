"""The benchmarks of readings, on a tiny model and a few rows: every number that their tables name is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import frame, study
from tests.support.rows import labelled, write_jsonl
from tests.support.saved import save_tiny


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny base and the data of one task."""
    rows = labelled(12)
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / "data" / "sst2" / f"{split}.jsonl", *rows)
    monkeypatch.setenv("SOFTPROMPT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path))  # which the benchmarks change
    save_tiny(tmp_path / "base")
    return tmp_path


def ran(main: Any, home: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[dict[str, Any]]:
    given = [
        "--model",
        str(home / "base"),
        "--home",
        str(home / "study"),
        "--out",
        str(home / "out.json"),
        "--rows",
        "4",
    ]
    monkeypatch.setattr(sys, "argv", ["benchmark", *given, *options])
    main()
    return list(json.loads((home / "out.json").read_text(encoding="utf-8")).popitem()[1])


def test_the_study(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = ran(study.main, home, monkeypatch, "--names", "sst2", "--classified-steps", "2")
    assert (row["name"], row["steps"], row["form"], row["rows"]) == ("sst2", 2, "embedding", 4)
    assert set(row["controls"]) == {"start", "random"} and row["effect"] > 0
    assert {"recovered", "random_recovered", "start_recovered"} <= row["nearest"].keys() and row["lens"] is not None
    assert row["verbalize"]["controls"].keys() == {"start", "random"}
    assert "| sst2 | 16 embedding | 2 steps |" in capsys.readouterr().out


def test_the_frame(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ran(frame.main, home, monkeypatch, "--tasks", "sst2", "--steps", "2", "--tokens", "2", "--test-rows", "4")
    assert [row["frame"] for row in found] == ["", "Please {prompt}."]
    assert all(row["scores"]["rows"] == 4 and row["steps"] == 2 and row["text"] for row in found)
    assert found[0]["name"] != found[1]["name"]
