"""Logs a run's numbers to TensorBoard, trackio or Weights & Biases, through Accelerate's trackers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from softprompt.errors import missing_extra

_PROJECT = "softprompt"  # in trackio and Weights & Biases


def check_tracker(kind: str) -> None:
    """Raise MissingExtraError if the tracker's package is not installed."""
    if kind != "none" and importlib.util.find_spec(kind) is None:
        raise missing_extra(kind, "track", where="train.track")


class Tracking:
    """An open tracker, or none for kind "none".

    Args:
        kind: "none", "tensorboard", "trackio" or "wandb".
        name: of the run.
        folder: for the files of TensorBoard and Weights & Biases.
        settings: of the run, shown with its numbers.
    """

    def __init__(self, kind: str, name: str, folder: Path, settings: Mapping[str, object]) -> None:
        self._tracker: GeneralTracker | None = None
        if kind == "tensorboard":
            self._tracker = TensorBoardTracker("tensorboard", folder)
        elif kind == "trackio":
            self._tracker = TrackioTracker(_PROJECT, name=name, config=dict(settings))
        elif kind == "wandb":
            self._tracker = WandBTracker(_PROJECT, name=name, config=dict(settings), dir=str(folder))
        if self._tracker is not None:
            self._tracker.start()

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of a step or a validation as "kind/number"; other events are left out."""
        if self._tracker is not None and kind in {"step", "validation"}:
            self._tracker.log({f"{kind}/{name}": value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        """Flush and close."""
        if self._tracker is not None:
            self._tracker.finish()
