"""CSV and TSV text to decoded rows: a header of names, then one row a record; the separator is found."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

from softprompt.errors import DataError

__all__ = ["separator_of", "table_rows"]

SEPARATORS = (",", ";", "\t", "|")
_SAMPLE = 20  # records that the separator is found by
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def table_rows(text: str, path: Path, *, tabs: bool = False) -> Iterator[tuple[str, object]]:
    """The rows with their `file:line`; a record may span lines inside quotes.

    Args:
        tabs: a .tsv file. Many of those quote nothing: if every line has the header's number of tabs, quotation marks
            inside cells are text, and only those around a whole cell are taken off.

    Raises DataError for a broken table.
    """
    separator = "\t" if tabs else separator_of(text)
    plain = _plain_cells(text) if separator == "\t" else None
    records = plain if plain is not None else _quoted_cells(text, separator, path)
    header: list[str] | None = None
    for where, cells in records:
        place = f"{path}:{where}"
        if header is None:
            header = [cell.strip() for cell in cells]
            if len(set(header)) < len(header) or "" in header:
                raise DataError("the CSV header has an empty or repeated name", where=place, got=", ".join(header))
        elif len(cells) != len(header):
            raise DataError(
                "the row has another number of cells than the header",
                where=place,
                expected=f"{len(header)} ({', '.join(header)})",
                got=len(cells),
                hint=f"put cells that hold {_NAMES[separator]}, quotes or line breaks in double quotes",
            )
        else:
            yield place, dict(zip(header, cells, strict=True))


def separator_of(text: str) -> str:
    """The separator under which the first records have as many cells as the header, and the header has most.

    If no separator fits all of them, the one that splits the header most; a comma in doubt.
    """
    scores: dict[str, tuple[bool, int]] = {}
    for separator in SEPARATORS:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        widths = list[int]()
        try:
            widths += [len(cells) for cells in itertools.islice(rows, _SAMPLE) if cells]
            broken = False
        except csv.Error:
            broken = True
        width = widths[0] if widths else 1
        scores[separator] = (width > 1 and not broken and set(widths) == {width}, width)
    return max(SEPARATORS, key=scores.__getitem__)  # the first of equals


def _quoted_cells(text: str, separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of every record that is not blank, with cells in double quotes where they need them."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            hint = "keep fields under 128 KiB in CSV, or use JSONL" if "limit" in str(error) else None
            raise DataError("the CSV is broken", where=f"{path}:{line}", got=str(error), hint=hint) from error
        if cells is None:
            return
        if cells:
            yield line, cells


def _plain_cells(text: str) -> list[tuple[int, list[str]]] | None:
    """Line and cells of every line that is not blank, if all have as many tabs as the first one; None otherwise."""
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), start=1)]
    records = [(number, line.split("\t")) for number, line in lines if line.strip()]
    if len({len(cells) for _, cells in records}) > 1:
        return None
    return [(number, [_unquoted(cell) for cell in cells]) for number, cells in records]


def _unquoted(cell: str) -> str:
    """A cell without the quotation marks around it, if those are around all of it."""
    inner = cell[1:-1]
    whole = len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else cell
