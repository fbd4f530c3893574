"""A soft prompt on the held-out inputs of the texts that it stands for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from softprompt.distillation.composed_fidelity import ALL_TEXTS, composed_sources, load_source, measure_composed
from softprompt.distillation.config import DistillConfig
from softprompt.distillation.prepare import prepare_distillation
from softprompt.distillation.run import distill
from softprompt.editing.compose import compose
from softprompt.errors import DataError, StoreError
from softprompt.evaluation.custom_metrics import load_custom_metrics
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts import store
from softprompt.settings import resolve_settings
from tests.cli.conftest import saved_model
from tests.distillation.test_run import SMALL
from tests.support.rows import write_jsonl

TEXTS_OF = {"pirate": "Speak as a pirate.", "fees": "Fees are 5. End with Arr!"}
QUICK = SMALL | {"train.steps": 20, "train.lr": 0.05}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("models") / "base", "llama")


@pytest.fixture
def lm(base: Path) -> FrozenLM:
    return load_model(str(base), dtype="float32")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    write_jsonl(tmp_path / "rows.jsonl", *({"prompt": f"q {i}?", "completion": f"a {i}"} for i in range(24)))
    for name, text in TEXTS_OF.items():
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    return tmp_path


def distilled(lm: FrozenLM, base: Path, place: Path, name: str, **changes: Any) -> float:
    """Distil one of the texts; what its report says."""
    flags = QUICK | {"model": str(base), "name": name, "text": str(place / f"{name}.md")}
    flags |= {"data": str(place / "rows.jsonl"), **{key.replace("__", "."): value for key, value in changes.items()}}
    found = distill(prepare_distillation(resolve_settings(DistillConfig, flags), overwrite=True), lm, overwrite=True)
    assert found.fidelity is not None
    return found.fidelity.recovered(next(iter(found.fidelity.soft)))


def joined(lm: FrozenLM, expression: str, name: str = "both") -> None:
    sources = {one: store.load(one) for one in TEXTS_OF}
    store.save(name, *compose(expression, sources, name, lm=lm))


def test_its_own_report_again(lm: FrozenLM, base: Path, place: Path) -> None:
    first = distilled(lm, base, place, "pirate")
    (kept,) = measure_composed(lm, "pirate", {"pirate": load_source("pirate")})
    assert kept.report.recovered("pirate") == pytest.approx(first, abs=1e-6)
    assert kept.lost == 0 and kept.lost_by_texts is None
    assert kept.report.rows == 6


def test_joined_prompts_on_the_inputs_of_both(lm: FrozenLM, base: Path, place: Path) -> None:
    alone = {name: distilled(lm, base, place, name) for name in TEXTS_OF}
    joined(lm, "pirate | fees")
    card = store.load_card(store.locate("both"))
    names = composed_sources("both", card)
    assert names == list(TEXTS_OF)
    polite = load_custom_metrics(["valid_json"])
    found = measure_composed(lm, "both", {name: load_source(name) for name in names}, polite)
    for kept in found:
        assert kept.report.recovered(kept.source) == pytest.approx(alone[kept.source], abs=1e-6)
        assert set(kept.report.soft) == {kept.source, "both", ALL_TEXTS}
        assert kept.lost == kept.report.recovered(kept.source) - kept.report.recovered("both") != 0
        assert kept.lost_by_texts == 1 - kept.report.recovered(ALL_TEXTS) > 0.01, "the other text changes the answers"
        assert "valid_json" in kept.report.full_text.scores
        both, text = kept.report.soft["both"], kept.report.soft[ALL_TEXTS]
        assert both.prefix_tokens > kept.report.soft[kept.source].prefix_tokens
        assert text.prefix_tokens > kept.report.full_text.prefix_tokens


def test_a_prompt_that_is_as_good_loses_nothing(lm: FrozenLM, base: Path, place: Path) -> None:
    distilled(lm, base, place, "pirate")
    distilled(lm, base, place, "fees")
    joined(lm, "1.0*pirate + 0.0*fees")
    first, second = measure_composed(lm, "both", {name: load_source(name) for name in TEXTS_OF})
    assert first.lost == pytest.approx(0, abs=1e-5)
    assert second.lost > 0.05


def test_a_size_of_several_finds_its_run(lm: FrozenLM, base: Path, place: Path) -> None:
    first = distilled(lm, base, place, "pirate", sizes="8,16")
    (kept,) = measure_composed(lm, "pirate.8", {"pirate.8": load_source("pirate.8")})
    assert kept.report.recovered("pirate.8") == pytest.approx(first, abs=1e-6)


def test_what_is_refused(lm: FrozenLM, base: Path, place: Path) -> None:
    for name in TEXTS_OF:
        distilled(lm, base, place, name)
    joined(lm, "pirate | fees")
    card = store.load_card(store.locate("both"))
    with pytest.raises(DataError, match=r"(?s)was not distilled from a text.*eval both --data"):
        composed_sources("both", card, ["both"])
    distilled(lm, base, place, "fees", train__steps=2)
    with pytest.raises(StoreError, match=r"(?s)composed of another soft prompt.*compose both again"):
        composed_sources("both", card)
    assert composed_sources("both", card, ["fees"]) == ["fees"]
    (place / "fees.md").write_text("Fees are 6.", encoding="utf-8")
    with pytest.raises(DataError, match="not those that the soft prompt was distilled from"):
        load_source("fees")
    prepared = load_source("pirate")
    gone = replace(prepared, study_cache=place / "nowhere")
    with pytest.raises(StoreError, match="the study cache is missing"):
        measure_composed(lm, "pirate", {"pirate": gone})
    folder = store.locate("pirate")
    (folder.parent / ".runs" / "pirate" / "config.yaml").unlink()
    with pytest.raises(StoreError, match="its run is missing"):
        load_source("pirate")


def test_another_split_is_noticed(lm: FrozenLM, base: Path, place: Path) -> None:
    """The name was used again, the old prompt of another size is still there: its held-out inputs are others."""
    distilled(lm, base, place, "pirate", sizes="8,16")
    distilled(lm, base, place, "pirate", sizes="4,16", study__held_out=5)
    assert load_source("pirate.4").settings.study.held_out == 5
    with pytest.raises(StoreError, match="holds out other queries"):
        load_source("pirate.8")
