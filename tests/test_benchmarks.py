"""What a benchmark does before it measures: it says which data it lacks, and does not start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import quality


@pytest.mark.parametrize(
    ("tasks", "message"), [("sst2", "no data for sst2 in .*SOFTPROMPT_DATA"), ("sst2,chess", "unknown task 'chess'")]
)
def test_a_benchmark_without_its_data_says_so(
    tasks: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTPROMPT_DATA", str(tmp_path))
    if "chess" in tasks:
        (tmp_path / "sst2").mkdir()
        (tmp_path / "sst2" / "train.jsonl").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["quality", "--tasks", tasks])
    monkeypatch.setattr(quality, "load", lambda name: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit, match=message):
        quality.main()
