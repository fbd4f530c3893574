"""A hybrid of attention and linear attention through the library's verbs: trained, saved, loaded, generated with."""

from __future__ import annotations

from pathlib import Path

import pytest

import softprompt
from softprompt.errors import UnsupportedModelError
from softprompt.evaluation.label_ranking import rank_labels
from softprompt.inference.sampling import Sampling
from softprompt.models.loading import load_model
from softprompt.training.prepare import prepare
from softprompt.training.run import fit
from tests.support.odd_models import odd_lm
from tests.support.saved import settings
from tests.support.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hybrid")
    odd_lm("qwen3_5").hf_model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_default_run_on_a_hybrid(hybrid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    config = settings(hybrid, tmp_path, recipe="auto")
    prepared = prepare(config)
    assert prepared.config.method.name == "prompt-tuning"
    assert any(choice.setting == "method.name" for choice in prepared.choices)
    lm = load_model(str(hybrid), dtype="float32")
    before = lm.digest()
    outcome = fit(prepared, lm)
    assert outcome.card.form == "embedding" and lm.digest() == before
    prompts = softprompt.load_prompts(lm, ["tone"])
    answers = softprompt.generate(lm, prompts, [softprompt.Request("one", "tone")] * 2, Sampling(max_new_tokens=5))
    assert answers[0].ids == answers[1].ids
    records = softprompt.load_rows(str(tmp_path / "data" / "validation.jsonl"))
    totals, _ = rank_labels(lm, prompts["tone"], records, ["yes", "no"])
    assert totals.shape == (len(records), 2)


def test_states_are_trained_saved_and_used(hybrid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    prepared = prepare(settings(hybrid, tmp_path, recipe="auto", method__name="state-tuning"))
    assert prepared.config.method.init == "text"
    lm = load_model(str(hybrid), dtype="float32")
    outcome = fit(prepared, lm)
    assert outcome.card.form == "state"
    prompts = softprompt.load_prompts(lm, ["tone"])
    answers = softprompt.generate(lm, prompts, [softprompt.Request("one", "tone")] * 2, Sampling(max_new_tokens=5))
    assert answers[0].ids == answers[1].ids


def test_keys_and_values_are_refused_with_the_way_out(
    hybrid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    config = settings(hybrid, tmp_path, method__name="prefix-tuning")
    with pytest.raises(UnsupportedModelError, match=r"(?s)carry more from a prefix.*--method prompt-tuning"):
        fit(prepare(config), load_model(str(hybrid), dtype="float32"))
