"""Files to rows: the formats, the right line numbers, and a clear word for every broken file."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softprompt.data import readers
from softprompt.data.readers import read_rows
from softprompt.errors import DataError

ROWS = [{"text": 'a "b", c\nd', "label": "é"}, {"text": "x", "label": "y"}]
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def rows_of(path: Path) -> list[tuple[str, object]]:
    return [(where.removeprefix(f"{path}:"), row) for where, row in read_rows(path)]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_jsonl_has_line_numbers_skips_blank_lines_and_takes_a_bom(tmp_path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path = write(tmp_path / "a.jsonl", "\ufeff" + lines[0] + "\r\n\n  \n" + lines[1])
    assert rows_of(path) == [("1", ROWS[0]), ("4", ROWS[1])]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_has_the_line_of_each_object(tmp_path: Path, indent: int | None) -> None:
    path = write(tmp_path / "a.json", "\ufeff" + json.dumps(ROWS, indent=indent))
    assert rows_of(path) == list(zip(["1", "1"] if indent is None else ["2", "6"], ROWS, strict=True))
    assert rows_of(write(path, " [ ] \n")) == []


def test_csv_counts_lines_inside_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufefftext, label\r\n"a ""b"", c\nd",é\r\n\r\nx,y\r\n')
    assert rows_of(path) == [("2", ROWS[0]), ("5", ROWS[1])]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1))
def test_csv_keeps_any_text(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [("a", "b"), *rows]]
    path = write(tmp_path / "a.csv", "\r\n".join(quoted))
    assert [row for _, row in read_rows(path)] == [{"a": a, "b": b} for a, b in rows]


def test_parquet(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert rows_of(path) == [("row 1", ROWS[0]), ("row 2", ROWS[1])]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"pip install pyarrow"):
        rows_of(write(tmp_path / "a.parquet", b""))


@pytest.mark.parametrize(
    ("name", "content", "line", "part"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": }', "2", "not valid JSON"),
        ("a.jsonl", '[{"a": 1},', "1", "belongs into a .json file"),
        ("a.jsonl", "[" * 100_000, "1", "not valid JSON"),
        ("a.jsonl", "1" * 10_000, "1", "not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n\xe9\n', "2", "byte 0xe9"),
        ("a.jsonl", b"\xff\xfe{", "1", "not UTF-8"),
        ("a.json", '{"a": 1}', "1", "must be a list"),
        ("a.json", "", "1", "must be a list"),
        ("a.json", '[{"a": 1},\n{"a": }]', "2", "not valid JSON"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', "1", "broken after this row"),
        ("a.json", '[{"a": 1}', "1", "broken after this row"),
        ("a.json", "[1] x", "", "text after the list"),
        ("a.json", b"[\n1,\n\xe9]", "3", "not UTF-8"),
        ("a.csv", "a,b\nx\n", "2", "another number of cells"),
        ("a.csv", "a,b\nx,y,z\n", "2", "another number of cells"),
        ("a.csv", "a,a\nx,y\n", "1", "empty or repeated name"),
        ("a.csv", "a,\nx,y\n", "1", "empty or repeated name"),
        ("a.csv", 'a,b\n"x"y,z\n', "2", "CSV is broken"),
        ("a.csv", 'a,b\n"x,z\n', "2", "CSV is broken"),
        ("a.csv", "a,b\nx," + "y" * 200_000, "2", "use JSONL"),
        ("a.csv", b"a,b\nx,\xe9\n", "2", "not UTF-8"),
        ("a.parquet", b"PAR1", "", "Parquet file cannot be read"),
        ("a.docx", "hello", "", "unknown kind of data file"),
        ("a", "hello", "", "no suffix"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str | bytes, line: str, part: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        rows_of(path)
    assert part in str(caught.value)
    assert str(caught.value.where) == (f"{path}:{line}" if line else str(path))


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data file"):
        rows_of(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        rows_of(tmp_path)


def test_what_is_read_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": "' + "x" * 50 + '"}\n')
    monkeypatch.setattr(readers, "MAX_LINE", 50)
    with pytest.raises(DataError, match="too long") as caught:
        rows_of(path)
    assert str(caught.value.where) == f"{path}:2"
    monkeypatch.setattr(readers, "MAX_LINE", 61)
    assert len(rows_of(path)) == 2  # the limit itself is allowed
    monkeypatch.setattr(readers, "MAX_FILE", 5)
    assert len(rows_of(write(tmp_path / "a.json", "[1,2]"))) == 2
    monkeypatch.setattr(readers, "MAX_FILE", 4)
    for name in ("a.json", "a.csv"):
        with pytest.raises(DataError, match="too large"):
            rows_of(write(tmp_path / name, "[1,2]"))


def test_a_large_parquet_is_refused_by_what_it_unpacks_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"{i:01000}" for i in range(1000)]})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    monkeypatch.setattr(readers, "MAX_FILE", 2**19)
    assert path.stat().st_size < 2**19
    with pytest.raises(DataError, match="too large"):
        rows_of(path)


def test_files_that_cannot_be_opened_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", "{}")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        rows_of(path)
