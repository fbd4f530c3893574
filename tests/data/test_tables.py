"""CSV and TSV: the separator is found, quoting is each format's own, and nothing is read into one cell too many."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.readers import read_rows
from softprompt.data.tables import SEPARATORS, separator_of, table_rows
from softprompt.errors import DataError

CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
ROWS = st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=5)


def rows_of(text: str, *, tabs: bool = False) -> list[object]:
    return [row for _, row in table_rows(text, Path("a.csv"), tabs=tabs)]


@given(ROWS, st.sampled_from(SEPARATORS))
def test_any_quoted_cells_under_any_separator(rows: list[tuple[str, str, str]], separator: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([("a", "b", "c"), *rows])
    assert rows_of(file.getvalue()) == [dict(zip("abc", row, strict=True)) for row in rows]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_separators_in_the_text_do_not_mislead(separator: str) -> None:
    others = " ".join(other for other in SEPARATORS if other not in (separator, "\t"))
    text = f"text{separator}label\n" + f"one{others} two{separator}good\n" * 3
    assert separator_of(text) == separator
    assert rows_of(text) == [{"text": f"one{others} two", "label": "good"}] * 3


def test_one_column_is_no_separator() -> None:
    assert rows_of("text\nIt rains. It pours.\nIt does\n") == [{"text": "It rains. It pours."}, {"text": "It does"}]


def test_a_row_with_a_cell_too_many_names_the_separator() -> None:
    with pytest.raises(DataError, match="another number of cells") as caught:
        rows_of("text;label\na;b\na;b;c\n")
    assert str(caught.value.where) == "a.csv:3"
    assert "semicolons" in str(caught.value.hint)


def test_quotation_marks_inside_cells_of_a_tsv_are_text(tmp_path: Path) -> None:
    """As GLUE's files have them: a mark that opens and never closes must not swallow the rows behind it."""
    path = tmp_path / "a.tsv"
    path.write_text('sentence\tlabel\n"Well, he said\t0\nNo\t1\nnever "ever"\t0\n"all of it"\t1\n"say ""a"""\t0\n')
    rows = [row for _, row in read_rows(path)]
    texts = ['"Well, he said', "No", 'never "ever"', "all of it", 'say "a"']
    assert rows == [{"sentence": text, "label": label} for text, label in zip(texts, "01010", strict=True)]


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_what_pandas_writes_as_tsv_is_read_back(rows: list[tuple[str, str]]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter="\t", lineterminator="\n").writerows(
        [("a", "b"), *[(f"x{a}", f"x{b}") for a, b in rows]]
    )
    both = any("\t" in cell and "\n" in cell for row in rows for cell in row)  # may read as lines that quote nothing
    if "\r" not in file.getvalue() and not both:
        assert rows_of(file.getvalue(), tabs=True) == [{"a": f"x{a}", "b": f"x{b}"} for a, b in rows]
