"""Study caches and checkpoints of distillations that softprompt 0.1 wrote: they are found, read and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from softprompt.distillation import dataset, run
from softprompt.distillation.composed_fidelity import load_source, measure_composed
from softprompt.distillation.study_cache import StudyCache
from softprompt.models.loading import load_model
from softprompt.prompts import store
from tests.support.shell import done

ARTIFACTS = Path(__file__).parents[1] / "support" / "artifacts_0_1"
EXPECTED: dict[str, Any] = json.loads((ARTIFACTS / "expected.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.deprecation.RenamedWarning")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the artifacts, and the working directory in it."""
    copy = tmp_path / "artifacts"
    shutil.copytree(ARTIFACTS, copy)
    monkeypatch.chdir(copy)
    return copy


def assert_metrics(card_metrics: dict[str, Any], name: str, prompt: str) -> None:
    """Fidelity as 0.1 measured it when it resumed this run."""
    expected = EXPECTED["unfinished"][name]["prompts"][prompt]["metrics"]
    for key in ("steps", "stopped", "held_out"):
        assert card_metrics[key] == expected[key]
    for key in ("recovered", "divergence", "divergence_without_text"):
        assert card_metrics[key] == pytest.approx(expected[key], abs=2e-3)


def never(*args: object) -> None:
    pytest.fail("cached work was done again")


def test_a_checkpoint_resumes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the answers of its cache and without a new start."""
    monkeypatch.setenv("SOFTPROMPT_HOME", "unfinished")
    monkeypatch.setattr(dataset, "_teacher_answers", never)
    monkeypatch.setattr(run, "compacted_starts", never)
    done(*EXPECTED["unfinished"]["guide"]["command"], "--resume")
    for name in ("guide.4", "guide.8"):
        assert_metrics(store.load_card(store.locate(name)).metrics, "guide", name)


def test_fidelity_is_that_of_0_1(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the held-out queries of the cache, whose kinds are named as today."""
    name = "policy"
    monkeypatch.setenv("SOFTPROMPT_HOME", "prompts")
    monkeypatch.setattr(dataset, "_teacher_answers", never)
    prepared = load_source(name)
    kinds = {query.kind for batch in StudyCache(prepared.study_cache).queries() for query in batch}
    assert {"detail", "cloze", "continuation"} <= kinds and "gap" not in kinds
    (report,) = measure_composed(load_model("model", dtype="float32", device="cpu"), name, {name: prepared})
    (expected,) = EXPECTED["fidelity"][name]["on"]
    assert report.report.recovered(name) == pytest.approx(expected["soft"][name]["recovered"], abs=1e-3)
