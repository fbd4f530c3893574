"""What a run writes as it goes: metrics.jsonl, config.yaml, and the same numbers to a tracker."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from softprompt.files import writing
from softprompt.settings import to_yaml
from softprompt.training.events import Event
from softprompt.training.run_log import RunLog
from softprompt.training.tracking import Tracking


@dataclass(frozen=True)
class RunRecorder:
    """Where a run's events go.

    Attributes:
        run: the folder; emptied when a run starts anew.
        name: of the soft prompt, for the tracker.
        settings: written as config.yaml.
        track: the tracker, or "none".
    """

    run: Path
    name: str
    settings: BaseModel
    track: str


@contextlib.contextmanager
def record_events(
    where: RunRecorder, writes: bool, resume: bool, report: Callable[[Event], None]
) -> Iterator[Callable[[Event], None]]:
    """A function that tells `report` of every event, and records it.

    Args:
        writes: of several processes one does; the others are silent.
    """
    if not writes:
        yield lambda event: None
        return
    with contextlib.ExitStack() as stack:
        sinks: list[Callable[[Event], None]] = []

        def open_sinks(step: int) -> None:
            if not resume:
                shutil.rmtree(where.run, ignore_errors=True)
            log = RunLog(where.run / "metrics.jsonl", step if resume else None)
            stack.callback(log.close)
            with writing(where.run):
                (where.run / "config.yaml").write_text(to_yaml(where.settings), encoding="utf-8")
            tracker = Tracking(where.track, where.name, where.run, where.settings.model_dump(mode="json"))
            stack.callback(tracker.close)
            sinks.append(lambda event: log.write(line_of(event)))
            sinks.append(lambda event: tracker.write(event.kind, event.step, event.numbers))

        def everywhere(event: Event) -> None:
            if event.kind == "start":  # nothing before it: a refused --resume leaves the folder as it was
                open_sinks(event.step)
            for sink in (*sinks, report):
                sink(event)

        yield everywhere


def line_of(event: Event) -> dict[str, Any]:
    """An event as one JSON object."""
    of = {"candidate": event.trial} if event.trial else {}
    return {"event": event.kind, "step": event.step, **of, **event.numbers}
