"""A new shape of rows: one class, registered, and every command takes it.

The shape is a riddle, guesses at it, and the number of the right one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from softprompt.cli.main import app
from softprompt.data.row_shapes.base import RowShape
from softprompt.data.row_shapes.registry import register_shape, row_shapes, shape_of, unregister_shape
from softprompt.data.splits import inputs_of, load_rows
from softprompt.errors import DataError
from tests.extending.toy_row_shape import Riddle
from tests.support.rows import one, records, write_jsonl
from tests.support.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def shape() -> Iterator[RowShape]:
    """The shape, known while a test runs."""
    known = row_shapes()
    added = Riddle()
    register_shape(added)
    yield added
    unregister_shape(added)
    assert row_shapes() == known


def riddle(number: int) -> dict[str, Any]:
    return {"riddle": f"Which is {number}?", "guesses": [str(number), str(number + 1)], "solution": number % 2}


def run(*args: object) -> Any:
    """A command's JSON."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout.splitlines()[-1])


def test_the_shape_is_found_by_its_fields(shape: RowShape) -> None:
    record = one(riddle(3))
    assert shape_of(record) is shape
    assert (record.fields["guesses"], record.target) == ("A. 3\nB. 4", "B")
    assert one({"text": "a", "label": "b"}).kind == "label", "the other shapes are as before"


def test_its_errors_show_a_right_row(shape: RowShape) -> None:
    with pytest.raises(DataError, match="number of a guess") as caught:
        records(riddle(1), {**riddle(2), "solution": 7})
    assert (caught.value.where, caught.value.expected) == ("f.jsonl:2", shape.example)
    with pytest.raises(DataError, match="none of the known fields") as caught:
        one({"quest": "?"})
    assert shape.example in str(caught.value.expected)


def test_more_fields_make_a_shape_more_specific() -> None:
    """A shape whose fields contain those of another one takes the rows that have them all."""

    class Reasoned(RowShape):
        kind, description, example = "reasoned", "answers with reasons", "{}"
        source, target = ("prompt", "reason"), "completion"

    register_shape(added := Reasoned())
    try:
        row = one({"prompt": "2 + 2?", "reason": "Count.", "completion": "4"})
        assert (row.kind, row.fields, row.target) == ("reasoned", {"prompt": "2 + 2?", "reason": "Count."}, "4")
        assert added.default_text(row) == "{prompt}\n{reason}"
        assert one({"prompt": "2 + 2?", "completion": "4"}).kind == "completion"
        with pytest.raises(ValueError, match="registered already"):
            register_shape(Reasoned())
    finally:
        unregister_shape(added)


def test_questions_are_the_same_if_their_choices_are(tmp_path: Path) -> None:
    same, other = riddle(1), {**riddle(1), "guesses": ["1", "7"]}
    rows = load_rows(write_jsonl(tmp_path / "rows.jsonl", same, {**same, "solution": 0}, other))
    first, second, third = map(inputs_of, rows)
    assert first == second != third


def test_check_train_and_eval_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    monkeypatch.setenv("SOFTPROMPT_DEBUG", "")
    base, data = tmp_path / "base", tmp_path / "data"
    data.mkdir()
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    write_jsonl(data / "train.jsonl", *map(riddle, range(12)))
    write_jsonl(data / "test.jsonl", *map(riddle, range(20, 26)))

    report = run("data", "check", data, "--json")
    assert (report["kind"], report["ok"]) == ("riddle", True)
    assert report["template"]["text"] == "{riddle}\n{guesses}\nAnswer:"
    assert report["splits"]["test"]["labels"] == {"A": 3, "B": 3}

    tiny = ("--steps", 2, "--n-tokens", 2, "--batch-size", 4, "--dtype", "float32")
    run("train", "--model", base, "--data", data, "--name", "choices", *tiny, "--json")
    card = json.loads((tmp_path / "prompts" / "choices" / "card.json").read_text())
    assert card["labels"] == ["A", "B"]

    scores = run("eval", "choices", "--model", base, "--data", data, "--dtype", "float32", "--json")["soft_prompt"]
    assert scores["rows"] == 6
    assert 0 <= scores["accuracy"] <= 1
