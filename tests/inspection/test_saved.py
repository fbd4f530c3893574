"""Rows, start and text of a saved soft prompt's own run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from softprompt.data.splits import load_splits
from softprompt.distillation.prepare import prepare_distillation
from softprompt.distillation.run import distill
from softprompt.inspection.saved import load_saved
from softprompt.models.loading import load_model
from softprompt.training.run import fit, prepare
from tests.cli.conftest import saved_model
from tests.distillation.test_run import TEXT
from tests.distillation.test_run import settings as distill_settings
from tests.support.rows import labelled, write_jsonl
from tests.support.saved import settings


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("models") / "base", "llama")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    return tmp_path / "prompts"


def test_the_rows_held_out_in_training_are_found_and_only_those(base: Path, tmp_path: Path, home: Path) -> None:
    lm = load_model(str(base), dtype="float32")
    fit(prepare(settings(base, tmp_path)), lm)
    found = load_saved(lm, "tone")
    held_out = load_splits(tmp_path / "data").validation
    assert found.rows is not None and [row.fields for row in found.rows] == [row.fields for row in held_out]
    assert found.start is not None and found.start.n_tokens == 6 and not found.text
    assert len(load_saved(lm, "tone", limit=3).rows or ()) == 3
    write_jsonl(tmp_path / "data" / "train.jsonl", *labelled(24, 1000))
    assert load_saved(lm, "tone").rows is None, "the training rows are others now, so nothing is known of the rest"
    given = load_saved(lm, "tone", data=str(tmp_path / "data" / "validation.jsonl"))
    assert given.rows is not None and len(given.rows) == 8
    shutil.rmtree(home / ".runs")
    alone = load_saved(lm, "tone")
    assert alone.rows is None and alone.start is None and not alone.notes


def test_the_held_out_messages_of_a_distillation(base: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.md").write_text(TEXT, encoding="utf-8")
    write_jsonl(tmp_path / "rows.jsonl", *({"prompt": f"q {i}?", "completion": f"a {i}"} for i in range(24)))
    lm = load_model(str(base), dtype="float32")
    distill(prepare_distillation(distill_settings(base, tmp_path)), lm)
    found = load_saved(lm, "policy")
    assert found.text == TEXT and found.start is not None and found.rows is not None
    assert 0 < len(found.rows) <= 6 and all(row.target is not None for row in found.rows)
    (tmp_path / "policy.md").write_text("Another text.", encoding="utf-8")
    changed = load_saved(lm, "policy")
    assert changed.rows is None and not changed.text and "not those" in changed.notes[0]
