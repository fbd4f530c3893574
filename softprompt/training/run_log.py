"""metrics.jsonl of a run: one JSON object per event, appended, and cut back to a checkpoint on resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from softprompt.files import writing


class RunLog:
    """Appends events to `path`, one JSON object a line.

    Args:
        keep_until: of a resumed run, the step that its checkpoint was taken at; later lines are dropped. None
            starts the file anew.

    Every function raises StoreError if the disk refuses.
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

    def write(self, event: dict[str, Any]) -> None:
        """Append one event."""
        with writing(self.path):
            self._file.write(json.dumps(event) + "\n")

    def close(self) -> None:
        """Close the file."""
        with writing(self.path):
            self._file.close()


def _until(events: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """The events before the checkpoint of `step` and its own; what came behind it will come again."""
    for i in reversed(range(len(events))):
        if events[i].get("event") == "checkpoint" and events[i].get("step") == step:
            return events[: i + 1]
    return [event for event in events if event.get("step", 0) <= step]  # killed before the line was written


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
