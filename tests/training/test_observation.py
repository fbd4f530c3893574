"""Numbers of the prompt while it is trained: those that `inspect` would find, from the start on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt.formatting.formatted_prompt import from_card
from softprompt.inspection.attention import attention_reading
from softprompt.inspection.drift import drift
from softprompt.inspection.effect import PromptEffect
from softprompt.inspection.saved import load_saved
from softprompt.prompts import store
from softprompt.training.run import build_trial, fit, prepare
from softprompt.training.run_log import read_log
from tests.support.odd_models import odd_lm
from tests.support.saved import save_tiny, settings
from tests.support.tiny import tiny_lm


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    return tmp_path / "prompts"


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning"])
def test_the_last_numbers_are_those_of_the_saved_prompt(method: str, tmp_path: Path) -> None:
    base, lm = save_tiny(tmp_path / "base"), tiny_lm()
    config = settings(base, tmp_path, method__name=method, train__inspect=True, train__lr=0.01, train__patience=None)
    prepared = prepare(config)
    result = fit(prepared, lm)
    lines = [line for line in read_log(prepared.run / "metrics.jsonl") if line["event"] == "validation"]
    assert lines[0]["step"] == 0 and lines[0]["drift"] == 0 and len(lines) >= 2
    best = min(lines, key=lambda line: line["validation_loss"])  # type: ignore[arg-type,return-value]
    saved = load_saved(lm, "tone")
    assert saved.start is not None
    found = drift(lm, saved.formatted.prompt, saved.start)  # type: ignore[arg-type]
    assert found.distances is not None and best["drift"] == pytest.approx(sum(found.distances) / 6, rel=1e-4)
    assert best["effective_rank"] == pytest.approx(sum(found.effective_rank) / len(found.effective_rank), rel=1e-4)
    folder, card = result.saved[0]
    rows = prepared.tasks[0].splits.validation[:4]
    read = attention_reading(PromptEffect(lm, from_card(*store.load(folder, lm.geometry)), rows))
    assert best["attention"] == pytest.approx(sum(read.total) / len(read.total), rel=1e-3)
    assert (folder / "inspect.png").read_bytes().startswith(b"\x89PNG") and card.recipe["inspect"] is True


def test_without_the_setting_nothing_is_measured_and_a_run_is_the_same(tmp_path: Path) -> None:
    base, lm = save_tiny(tmp_path / "base"), tiny_lm()
    trials = [build_trial(prepare(settings(base, tmp_path, train__inspect=on)), lm).trial for on in (False, True)]
    assert trials[0].identity() == trials[1].identity(), "an unfinished run may be resumed with the setting or without"
    prepared = prepare(settings(base, tmp_path))
    fit(prepared, lm)
    assert not any("drift" in line for line in read_log(prepared.run / "metrics.jsonl"))
    assert not (prepared.folder / "inspect.png").exists()


def test_models_whose_attention_is_not_seen_have_the_other_numbers(tmp_path: Path) -> None:
    base, lm = save_tiny(tmp_path / "base"), odd_lm("granite4")
    prepared = prepare(settings(base, tmp_path, method__name="prompt-tuning", train__inspect=True, train__steps=2))
    with torch.random.fork_rng():
        fit(prepared, lm)
    lines = [line for line in read_log(prepared.run / "metrics.jsonl") if line["event"] == "validation"]
    assert lines and all("drift" in line and "attention" not in line for line in lines)
