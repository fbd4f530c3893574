"""What a benchmark does before it measures, and what its committed results and pages hold."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import constraints, quality, quality_table
from tests.support.tiny import tiny_lm


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
    monkeypatch.setattr(quality, "load_model", lambda name: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit, match=message):
        quality.main()


def test_systems_of_the_quality_benchmark() -> None:
    assert all(map(quality.is_known, ("auto", "auto+train.average=0.9", "ours:prompt-tuning+train.lr=1", "lora-tuned")))
    assert not any(map(quality.is_known, ("autos", "auto+train.average", "lora+train.lr=1", "lora-best")))


def test_the_quality_page_is_what_the_results_say() -> None:
    """Every number of docs/quality.md comes from a committed file."""
    found = quality_table.load()
    assert found, "there are results"
    assert quality_table.PAGE.read_text(encoding="utf-8") == quality_table.page(found, quality_table.load_costs())


def test_no_result_names_a_path_of_the_machine_it_was_measured_on() -> None:
    place = re.compile(r'"/(tmp|home|root|work|Users)/')
    found = list(Path("benchmarks/results").glob("*.json"))
    assert found, "there are results"
    assert [path.name for path in found if place.search(path.read_text(encoding="utf-8"))] == []


def test_the_quality_table() -> None:
    """Means over seeds, deviations where there are several; the mean over classification only if no task is missing."""
    runs = {
        (False, 5.0, "m, bfloat16", "sst2", "auto"): [(0.9, 1000, "a.json"), (0.92, 1000, "b.json")],
        (False, 5.0, "m, bfloat16", "rte", "auto"): [(0.6, 277, "a.json")],
        (False, 5.0, "m, bfloat16", "e2e", "auto"): [(31.26, 100, "a.json")],
        (False, 5.0, "m, bfloat16", "sst2", "base"): [(0.8, 1000, "a.json")],
    }
    text = quality_table.page(runs)
    assert "| system | sst2 | rte | e2e | mean of classification |" in text
    assert "| auto | 0.910 ± 0.014 (2) | 0.600 | 31.3 | 0.755 |" in text
    assert "| base | 0.800 |  |  |  |" in text
    assert "## all training rows, 5 minutes a system (m, bfloat16)" in text


def test_costs_stand_below_the_scores() -> None:
    """The median over tasks, in a table of its own; a group without costs has none."""
    runs = {(False, 5.0, "m", task, "lora"): [(0.9, 10, "a.json")] for task in ("sst2", "rte")}
    cost = {"parameters": 1000, "disk_bytes": 4000, "prefix_tokens": 2, "kv_bytes": 64, "tokens_per_second": 10.0}
    costs = {key: [cost | {"tokens_per_second": speed}] for key, speed in zip(runs, (10.0, 12.0), strict=True)}
    assert "| lora | 1,000 | 4,000 | 2 | 64 | 11.0 |" in quality_table.page(runs, costs)
    assert "| cost |" not in quality_table.page(runs)


def test_what_a_schema_costs_is_measured() -> None:
    """Every row makes its tokens, with and without a schema."""
    with torch.no_grad():
        found = asyncio.run(constraints.measure(tiny_lm("llama"), constraints.QUICK))
    assert found["throughput_lost"]["free"] == 0
    assert found["tokens_per_second"].keys() == {"free", "every other row", "every row"}
