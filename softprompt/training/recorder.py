"""Records a run while it trains: metrics.jsonl, config.yaml, and the same numbers to a tracker."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from softprompt.files import write_json, writing
from softprompt.settings import to_yaml
from softprompt.training.events import Event
from softprompt.training.pace import PACE_FILE, Pace
from softprompt.training.run_log import RunLog
from softprompt.training.tracking import Tracking


@dataclass(frozen=True)
class RunRecorder:
    """Where to record a run.

    Attributes:
        run: the run's folder; emptied unless the run is resumed.
        name: of the soft prompt, for the tracker.
        settings: written as config.yaml.
        track: the tracker, or "none".
        pace: the machine's measured speed, written as pace.json for `--resume`.
    """

    run: Path
    name: str
    settings: BaseModel
    track: str
    pace: Pace | None = None


@contextlib.contextmanager
def record_events(
    recorder: RunRecorder, writes: bool, resume: bool, report: Callable[[Event], None]
) -> Iterator[Callable[[Event], None]]:
    """A context that gives a function to call with every event: it records the event and calls `report`.

    Args:
        writes: whether this process records and reports; of several processes exactly one does.
    """
    if not writes:
        yield lambda event: None
        return
    with contextlib.ExitStack() as stack:
        sinks: list[Callable[[Event], None]] = []

        def open_sinks(step: int) -> None:
            if not resume:
                shutil.rmtree(recorder.run, ignore_errors=True)
            log = RunLog(recorder.run / "metrics.jsonl", step if resume else None)
            stack.callback(log.close)
            with writing(recorder.run):
                (recorder.run / "config.yaml").write_text(to_yaml(recorder.settings), encoding="utf-8")
                if recorder.pace is not None:
                    write_json(recorder.run / PACE_FILE, recorder.pace.to_dict())
            tracker = Tracking(recorder.track, recorder.name, recorder.run, recorder.settings.model_dump(mode="json"))
            stack.callback(tracker.close)
            sinks.append(lambda event: log.write(line_of(event)))
            sinks.append(lambda event: tracker.write(event.kind, event.step, event.numbers))

        def record(event: Event) -> None:
            if event.kind == "start":  # not earlier: a refused --resume leaves the folder unchanged
                open_sinks(event.step)
            for sink in (*sinks, report):
                sink(event)

        yield record


def line_of(event: Event) -> dict[str, object]:
    """An event as one JSON object."""
    trial = {"trial": event.trial} if event.trial else {}
    return {"event": event.kind, "step": event.step, **trial, **event.numbers}
