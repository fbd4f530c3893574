"""Dry runs of the comparisons with what users pick instead: every system runs, and its numbers are in the JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peft_side, quality
from benchmarks.text_search import DEMONSTRATIONS
from softprompt.models.loading import load_model
from tests.support.rows import labelled, write_jsonl
from tests.support.saved import save_tiny

Main = Callable[[], None]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny base and the data of one task."""
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    for i, split in enumerate(("train", "validation", "test")):
        write_jsonl(tmp_path / "data" / "sst2" / f"{split}.jsonl", *labelled(12, 12 * i))
    monkeypatch.setenv("SOFTPROMPT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path))  # which the benchmarks change
    save_tiny(tmp_path / "base")
    return tmp_path


def ran(main: Main, world: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[dict[str, Any]]:
    given = [
        "benchmark",
        *options,
        "--model",
        str(world / "base"),
        "--dtype",
        "float32",
        "--out",
        str(world / "out.json"),
    ]
    monkeypatch.setattr(sys, "argv", given)
    main()
    data = json.loads((world / "out.json").read_text(encoding="utf-8"))
    assert data["machine"]["commit"]
    return list(data["results"])


def test_every_way_of_adapting(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is scored, and its cost stands beside the score; the base model is as before in the end."""
    systems = "base,text-best,text-fit,lora,rslora,lora-r1,ia3,vera,peft:prompt-tuning,lora-tuned,ia3-tuned-full,auto"
    given = ["--tasks", "sst2", "--budget-minutes", "0.005", "--systems", f"{systems},base"]
    results = ran(quality.main, world, monkeypatch, *given)
    found = {result["system"]: result for result in results}
    assert list(found) == systems.split(",")
    for name, result in found.items():
        cost = result["cost"]
        assert 0 <= result["accuracy"] <= 1 and cost["tokens_per_second"] > 0, name
        if not name.startswith(("base", "text")):
            assert cost["disk_bytes"] > 4 * cost["parameters"] > 0, name
        if name in quality.PEFT:
            assert result["loss_gap"] < 1e-4, name
    assert results[-1]["accuracy"] == results[0]["accuracy"]
    numbers = {name: found[name]["cost"]["parameters"] for name in found}
    assert numbers["lora"] == 8 * numbers["lora-r1"] == numbers["rslora"]
    assert numbers["ia3"] == 2 * (16 + 16 + 64)  # a number for each key, value and hidden neuron of two layers
    assert numbers["peft:prompt-tuning"] == 20 * 32
    assert set(found["lora-tuned"]["losses"]) == {"0.0003", "0.001", "0.003"}
    assert found["lora-tuned"]["seconds"] < found["ia3-tuned-full"]["seconds"]
    text = found["text-best"]
    assert text["losses"][text["chosen"]] == min(text["losses"].values()) and text["tried"] <= 4 * len(DEMONSTRATIONS)
    assert found["text-fit"]["cost"]["prefix_tokens"] > 100 and found["text-fit"]["chosen"] != "0 rows"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's
@pytest.mark.parametrize("kind", ["lora", "prompt-tuning"])
def test_the_best_of_three_rates_is_put_back(kind: peft_side.Kind, world: Path) -> None:
    """What is kept has the loss that it was chosen by, and is gone after `undo`."""
    lm = load_model(str(world / "base"), dtype="float32")
    before = lm.digest()
    ids = [tuple(lm.encode(f"row {i} even")) for i in range(8)]
    rows = [peft_side.Example(row, (False,) * (len(row) - 4) + (True,) * 4, "") for row in ids]
    lm.tokenizer.save_pretrained(world / "tokenizer")
    task = peft_side.PeftTask(lm, rows, rows, [1], 4, "even", str(world / "tokenizer"), 4, seed=0)
    trained = peft_side.train_rates(task, kind, 0.1)
    kept = trained.losses[f"{trained.rate:.3g}"]
    assert kept == min(trained.losses.values()) and len(trained.losses) == 3
    assert task.loss(trained.prompt, rows) == pytest.approx(kept, abs=1e-5)
    trained.undo()
    assert lm.digest() == before


def test_an_unknown_system_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="unknown system 'auto-tuned'"):
        ran(quality.main, world, monkeypatch, "--tasks", "sst2", "--systems", "base,auto-tuned")
