"""Trackers: what is logged in them, and what is said when one is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

from softprompt.errors import ConfigError
from softprompt.training import tracking
from softprompt.training.run import fit, prepare
from softprompt.training.tracking import Tracking
from tests.support.saved import save_tiny, settings

KINDS = {"tensorboard": "TensorBoardTracker", "trackio": "TrackioTracker", "wandb": "WandBTracker"}


class Recorder:
    """Stands in for Accelerate's class of a tracker whose package is not installed here."""

    made: list[Recorder]

    def __init__(self, run_name: str, *place: Any, **options: Any) -> None:
        self.about, self.lines, self.open = (run_name, place, options), list[tuple[dict[str, float], int]](), False
        self.made.append(self)

    def start(self) -> None:
        PartialState()  # as the real ones need
        self.open = True

    def log(self, values: dict[str, float], step: int) -> None:
        assert self.open
        self.lines.append((values, step))

    def finish(self) -> None:
        self.open = False


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    Recorder.made = []
    for name in KINDS.values():
        monkeypatch.setattr(tracking, name, Recorder)
    return Recorder.made


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_logged_by_step(kind: str, recorders: list[Recorder], tmp_path: Path) -> None:
    tracker = Tracking(kind, "tone", tmp_path, {"lr": 0.1})
    tracker.write("step", 1, {"loss": 2.0})
    tracker.write("checkpoint", 1, {"elapsed": 3.0})
    tracker.write("validation", 1, {"validation_loss": 1.5})
    tracker.close()
    (made,) = recorders
    assert made.lines == [({"step/loss": 2.0}, 1), ({"validation/validation_loss": 1.5}, 1)]
    assert not made.open


def test_none_is_silent(recorders: list[Recorder], tmp_path: Path) -> None:
    tracker = Tracking("none", "tone", tmp_path, {})
    tracker.write("step", 1, {"loss": 2.0})
    tracker.close()
    assert recorders == []


def test_a_run_tells_its_tracker(recorders: list[Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    monkeypatch.setattr(tracking, "check_tracker", lambda kind: None)
    base = save_tiny(tmp_path / "base")
    fit(prepare(settings(base, tmp_path, train__track="tensorboard")))
    (made,) = recorders
    assert [step for values, step in made.lines if "step/loss" in values] == [1, 2, 3, 4, 5, 6]
    assert not made.open


def test_what_is_not_installed_is_told_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="trackio is not installed"):
        prepare(settings(tmp_path / "no model", tmp_path, train__track="trackio"))
