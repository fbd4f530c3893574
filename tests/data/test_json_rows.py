"""JSON in all its containers: the rows of each, with their lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from softprompt.data.json_rows import json_rows
from softprompt.data.splits import load_rows
from softprompt.errors import DataError

ROWS = [{"text": "a", "label": "b"}, {"text": "c", "label": "[{"}]


def rows_of(text: str) -> list[tuple[str, object]]:
    return [(where.removeprefix("a.json:"), row) for where, row in json_rows(text, Path("a.json"))]


@pytest.mark.parametrize(
    "container",
    [
        {"data": ROWS},
        {"version": "1.1", "data": ROWS},
        {"rows": ROWS, "info": {"data": [1, 2]}},
        {"note": 'a "[{" in text', "anything": ROWS, "numbers": [1, 2]},
        {"examples": ROWS, "authors": [{"name": "x"}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_around_the_list(container: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(container, indent=indent)
    found = rows_of(text)
    assert [row for _, row in found] == ROWS
    lines = text.splitlines()
    assert all("{" in lines[int(where) - 1] for where, _ in found)
    assert len({where for where, _ in found}) == (1 if indent is None else 2)


def test_lines_of_json_under_another_name() -> None:
    assert rows_of("\n".join(map(json.dumps, ROWS)) + "\n") == [("1", ROWS[0]), ("2", ROWS[1])]
    assert rows_of("\n\n".join(json.dumps(row, indent=2) for row in ROWS)) == [("1", ROWS[0]), ("6", ROWS[1])]


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": [1]}', '{"a": [{}], "b": [{}]}', "3", ""])
def test_other_values_hold_no_rows(text: str) -> None:
    with pytest.raises(DataError, match="must be a list of objects") as caught:
        rows_of(text)
    assert '{"data": [...]}' in str(caught.value.expected)


def test_squad_as_its_authors_wrote_it(tmp_path: Path) -> None:
    asked = [{"id": "1", "question": "Which?", "answers": [{"text": "Blue", "answer_start": 0}]}]
    asked += [{"id": "2", "question": "Why?", "answers": [], "is_impossible": True}]  # type: ignore[list-item]
    article = {"title": "Colors", "paragraphs": [{"context": "Blue is a color.", "qas": asked}]}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "2.0", "data": [article, article]}))
    rows = load_rows(path)
    assert [row.fields["prompt"] for row in rows[:2]] == ["Blue is a color.\nWhich?", "Blue is a color.\nWhy?"]
    assert [row.target for row in rows] == ["Blue", "unanswerable"] * 2
    assert [row.where.removeprefix(f"{path}:") for row in rows] == ["1", "1 row 2", "1 row 3", "1 row 4"]
