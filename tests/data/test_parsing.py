"""Every fault of a file is told, with its line, and the good rows between them."""

from __future__ import annotations

from pathlib import Path

from softprompt.data.parsing import row_faults
from softprompt.data.readers import read_rows
from softprompt.errors import DataError

GOOD = '{"prompt": "A", "completion": "B"}'


def faults(path: Path, most: int = 20) -> tuple[int, list[str]]:
    """Number of good rows, and the lines of the others."""
    parts = list(row_faults(read_rows(path), most_faults=most))
    return sum(not isinstance(part, DataError) for part in parts), [
        str(part.where).removeprefix(f"{path}:") for part in parts if isinstance(part, DataError)
    ]


def test_faults_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([GOOD, "3", GOOD, '{"prompt": "A"}', "", '{"prompt": 1, "completion": "B"}', GOOD]))
    assert faults(path) == (3, ["2", "4", "6"])
    assert faults(path, most=2) == (2, ["2", "4"])


def test_broken_json_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([GOOD, "3", "{", GOOD]))
    assert faults(path) == (1, ["2", "3"])


def test_a_file_without_rows_has_no_fault(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n\n")
    assert faults(tmp_path / "rows.jsonl") == (0, [])
