"""Short ways to make records and files in tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from softprompt.data.parsing import parse_rows
from softprompt.data.records import Record


def records(*rows: object, require_target: bool = True) -> list[Record]:
    """Records as read from f.jsonl."""
    return parse_rows([(f"f.jsonl:{i}", row) for i, row in enumerate(rows, 1)], require_target=require_target)


def one(row: object, *, require_target: bool = True) -> Record:
    return records(row, require_target=require_target)[0]


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def labelled(count: int, start: int = 0) -> list[dict[str, str]]:
    """Distinct text/label rows, labels even and odd."""
    return [{"text": f"row {i}", "label": ("even", "odd")[i % 2]} for i in range(start, start + count)]
