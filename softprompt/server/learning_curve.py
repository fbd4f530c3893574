"""The learning curve of a soft prompt: from its job's events, or from the metrics file of its run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from softprompt.training.artifacts import curves
from softprompt.training.prepare import RUNS

if TYPE_CHECKING:
    from softprompt.jobs.store import JobStore

MOST_POINTS = 1000
_PAGE = 1000
_VALUES = ("train_loss", "valid_loss", "valid_mean_token_accuracy")


class CurvePoint(TypedDict):
    """The numbers of a training step; null where nothing was measured."""

    step: int
    train_loss: float | None
    valid_loss: float | None
    valid_mean_token_accuracy: float | None


def curve_of_job(store: JobStore, job_id: str) -> list[CurvePoint]:
    """The curve of a job, also of one that runs. Raises NotFoundError."""
    found, after = defaultdict[int, dict[str, float]](dict), None
    while True:
        page = store.events(job_id, None, after=after, limit=_PAGE, newest_first=False)
        for event in page.items:
            step = (event.data or {}).get("step") if event.type == "metrics" else None
            if isinstance(step, int | float):
                found[int(step)] |= _numbers(event.data or {})
        if not page.has_more:
            return _points(found)
        after = page.items[-1].id


def curve_of_run(folder: Path) -> list[CurvePoint]:
    """The curve of a soft prompt whose run lies beside it; empty if it does not."""
    losses, validations = curves(folder.parent / RUNS / folder.name / "metrics.jsonl")
    found = defaultdict[int, dict[str, float]](dict)
    for name, pairs in (("train_loss", losses), ("valid_loss", validations)):
        for step, value in pairs:
            found[int(step)][name] = value
    return _points(found)


def _numbers(data: Mapping[str, object]) -> dict[str, float]:
    return {name: value for name in _VALUES if isinstance(value := data.get(name), int | float)}


def _points(found: Mapping[int, Mapping[str, float]]) -> list[CurvePoint]:
    """In the order of steps; of very many each with a validation, and some of the others."""
    steps = sorted(found)
    every = -(-len(steps) // MOST_POINTS) if steps else 1
    kept = (step for i, step in enumerate(steps) if i % every == 0 or "valid_loss" in found[step])
    return [_point(step, found[step]) for step in kept]


def _point(step: int, numbers: Mapping[str, float]) -> CurvePoint:
    return {
        "step": step,
        "train_loss": numbers.get("train_loss"),
        "valid_loss": numbers.get("valid_loss"),
        "valid_mean_token_accuracy": numbers.get("valid_mean_token_accuracy"),
    }
