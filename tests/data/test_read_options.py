"""`--columns`: other names of columns, and what a card remembers of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompt.data.parsing import parse_rows
from softprompt.data.read_options import ReadOptions, parse_columns
from softprompt.data.splits import load_rows
from softprompt.errors import DataError
from tests.support.rows import write_jsonl


@pytest.mark.parametrize(
    ("columns", "row", "wanted"),
    [
        ("prompt=q,completion=a", {"q": "Q", "a": "A"}, ("Q", "A")),
        (" prompt = my question , completion = a ", {"my question": "Q", "a": "A"}, ("Q", "A")),
        ("prompt=completion,completion=prompt", {"prompt": "A", "completion": "Q"}, ("Q", "A")),
        ("prompt=q.0.text,completion=q.1.text", {"q": [{"text": "Q"}, {"text": "A"}]}, ("Q", "A")),
        ("prompt=title+body,completion=a", {"title": "T", "body": "B", "a": "A"}, ("T\nB", "A")),
        ("prompt=a+b,completion=c", {"a+b": "Q", "c": "A"}, ("Q", "A")),
        ("completion=best", {"prompt": "Q", "best": "A"}, ("Q", "A")),
        ("prompt=question,completion=reply", {"question": "Q", "reply": "A", "answer": "other"}, ("Q", "A")),
    ],
)
def test_columns_take_other_names(columns: str, row: dict[str, Any], wanted: tuple[str, str]) -> None:
    (record,) = parse_rows([("f:1", row)], options=ReadOptions(parse_columns(columns)))
    assert (record.fields["prompt"], record.target) == wanted


@pytest.mark.parametrize("text", ["prompt", "prompt=", "=q", "prompt=q,prompt=b", "prompt=q,,"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="renamed by pairs") as caught:
        parse_columns(text)
    assert "prompt=question,completion=answer" in str(caught.value.expected)


@pytest.mark.parametrize("theirs", ["query", "q.1", "q.x", "q.0.x", "q+query"])
def test_a_missing_column_is_named(theirs: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"q": ["Q"], "a": "A"})
    with pytest.raises(DataError, match="has no column") as caught:
        load_rows(path, options=ReadOptions({"prompt": theirs, "completion": "a"}))
    assert (str(caught.value.where), caught.value.got) == (f"{path}:1", "columns a, q")


def test_what_a_hint_says_works(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"customer says": "Q", "our reply": "A", "n": 1})
    with pytest.raises(DataError) as caught:
        load_rows(path, options=ReadOptions(parse_columns("prompt=customer says")))
    assert str(caught.value.hint) == '--columns "completion=our reply"'
    columns = parse_columns("prompt=customer says,completion=our reply")
    assert load_rows(path, options=ReadOptions(columns))[0].target == "A"


@pytest.mark.parametrize(
    "options", [ReadOptions(), ReadOptions({"prompt": "q"}, 300, False), ReadOptions(learn_end=True)]
)
def test_a_card_remembers_what_is_not_the_default(options: ReadOptions) -> None:
    again = ReadOptions.of_card(options.to_dict())
    assert (again.columns, again.pieces, again.learn_end) == (options.columns, options.pieces, options.learn_end)
    assert bool(options.to_dict()) == (options != ReadOptions())


@pytest.mark.parametrize(
    "odd", [None, 3, {"columns": 3, "pieces": "x"}, {"columns": {"a": 1}, "learn_end": 1, "pieces": -1}]
)
def test_odd_entries_of_a_card_are_dropped(odd: object) -> None:
    assert ReadOptions.of_card(odd) == ReadOptions(lenient=True)


def test_a_card_s_columns_leave_other_rows_alone() -> None:
    options = ReadOptions.of_card({"columns": {"prompt": "q", "completion": "a"}})
    (theirs,) = parse_rows([("f:1", {"q": "Q", "a": "A"})], options=options)
    (ours,) = parse_rows([("f:1", {"prompt": "Q", "completion": "A"})], options=options)
    assert theirs == ours
