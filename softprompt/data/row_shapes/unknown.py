"""The error for rows that fit no shape: the columns found, the nearest shapes, and the `--columns` that would fit."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.data.row_shapes.base import RowFields, RowShape
from softprompt.data.row_shapes.names import columns_flag, likely_columns
from softprompt.errors import DataError

__all__ = ["unknown_row"]

_SHOWN = 2  # shapes


def unknown_row(row: RowFields, where: str, shapes: Sequence[RowShape]) -> DataError:
    """An error that shows the columns, a right row of the nearest shapes, and how to get there."""
    own: dict[str, RowShape] = {}
    for shape in shapes:
        if shape.has_answers:
            own.setdefault(shape.kind, shape)
    guesses = [(likely_columns(shape.fields, row), shape) for shape in own.values()]
    likely = sorted((guess for guess in guesses if guess[0][0]), key=lambda guess: -guess[0][1])[:_SHOWN]
    ways = [columns_flag(columns) for (columns, _), _ in likely]
    nearest = [shape for _, shape in likely] or list(own.values())
    return DataError(
        "the row has none of the known fields",
        where=where,
        expected="  or  ".join(shape.example for shape in nearest),
        got=f"columns {', '.join(sorted(map(str, row))) or '(none)'}",
        hint="  or  ".join(ways) or "--columns prompt=COLUMN,completion=COLUMN, or text=COLUMN,label=COLUMN",
    )
