"""metrics.jsonl of a run: one JSON object per event, appended, and cut back to the checkpoint on resume."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from softprompt.files import writing
from softprompt.json_types import JSONObject

Line: TypeAlias = JSONObject  # an event as JSON


class RunLog:
    """Appends events to `path`, one JSON object a line.

    Args:
        keep_until: step of the checkpoint that a run is resumed from; later lines are dropped. None starts the file
            anew.

    Every method raises StoreError if the disk refuses.
    """

    def __init__(self, path: Path, keep_until: int | None = None) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [] if keep_until is None else _until(read_log(path), keep_until)
            scratch = path.with_suffix(".tmp")
            scratch.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(scratch, path)
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, event: Mapping[str, object]) -> None:
        """Append one event."""
        with writing(self.path):
            self._file.write(json.dumps(event) + "\n")

    def close(self) -> None:
        """Close the file."""
        with writing(self.path):
            self._file.close()


def _until(events: list[Line], step: int) -> list[Line]:
    """The events up to and including the checkpoint of `step`; later ones will be written again."""
    for i in reversed(range(len(events))):
        if events[i].get("event") == "checkpoint" and events[i].get("step") == step:
            return events[: i + 1]
    return [event for event in events if _step(event) <= step]  # killed before the line was written


def _step(event: Line) -> float:
    step = event.get("step")
    return step if isinstance(step, int | float) else 0


def read_log(path: Path) -> list[Line]:
    """The events of a file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    events = list[Line]()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
