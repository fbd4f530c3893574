"""A run's numbers in TensorBoard, trackio or Weights & Biases too, through Accelerate's trackers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from softprompt.errors import ConfigError

PROJECT = "softprompt"


def check_tracker(kind: str) -> None:
    """Raise ConfigError if the tracker's package is not installed."""
    if kind != "none" and importlib.util.find_spec(kind) is None:
        raise ConfigError(f"{kind} is not installed", where="train.track", hint=f"pip install {kind}")


class Tracking:
    """An open tracker; with kind "none" nothing happens.

    Args:
        name: of the run.
        folder: where TensorBoard's files go; the other two have places of their own.
        settings: of the run, shown beside it.
    """

    def __init__(self, kind: str, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self._tracker: GeneralTracker | None = None
        if kind == "tensorboard":
            self._tracker = TensorBoardTracker("tensorboard", folder)
        elif kind == "trackio":
            self._tracker = TrackioTracker(PROJECT, name=name, config=dict(settings))
        elif kind == "wandb":
            self._tracker = WandBTracker(PROJECT, name=name, config=dict(settings), dir=str(folder))
        if self._tracker is not None:
            self._tracker.start()

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Log an event's numbers as "kind/number"; events without numbers of their own are left out."""
        if self._tracker is not None and kind in {"step", "validation"}:
            self._tracker.log({f"{kind}/{name}": value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        """Flush and close."""
        if self._tracker is not None:
            self._tracker.finish()
