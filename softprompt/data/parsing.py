"""Decoded rows of a file to checked records: the first row decides the shape, and every row is checked against it.

Fields that no shape knows are allowed and become template fields when they are strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from softprompt.data.records import Record
from softprompt.data.row_shapes.base import RowFields, RowShape, brief
from softprompt.data.row_shapes.completions import PROMPT_COMPLETION
from softprompt.data.row_shapes.registry import detect_shape
from softprompt.errors import DataError

__all__ = ["parse_rows"]


def parse_rows(rows: Iterable[tuple[str, object]], *, require_target: bool = True) -> list[Record]:
    """Check rows and turn them into records.

    Args:
        rows: pairs of `file:line` and the decoded row.
        require_target: False for inference files, whose targets may be missing, null or empty.

    Raises:
        DataError: a row is not an object, has another shape than the first, lacks a field or has one of
            the wrong type. The first bad row is described; the message counts the others.
    """
    records: list[Record] = []
    errors: list[DataError] = []
    first: tuple[RowShape, RowFields] | None = None
    for where, row in rows:
        try:
            fields = _object(row, where)
            first = first or (detect_shape(fields, where), fields)
            records.append(_parse(fields, where, *first, require_target))
            if records[-1].kind != records[0].kind:
                before = records[0].kind
                what = f"this row is of kind {records.pop().kind!r}, rows before it are {before!r}"
                raise first[0].error(where, what)
        except DataError as error:
            errors.append(error)
    if errors:
        raise _counted(errors[0], len(errors) - 1)
    return records


def _object(row: object, where: str) -> RowFields:
    """The row as a mapping."""
    if not isinstance(row, Mapping):
        raise PROMPT_COMPLETION.error(where, "a row must be a JSON object", got=brief(row))
    return cast(RowFields, row)


def _parse(row: RowFields, where: str, shape: RowShape, first: RowFields, require_target: bool) -> Record:
    """One record; tool definitions are refused in rows of every shape."""
    if row.get("tools") is not None:
        raise shape.error(where, "tool definitions ('tools') are not supported: the model would not see them")
    return shape.parse(row, where, first=first, require_target=require_target)


def _counted(error: DataError, more: int) -> DataError:
    """The same error with the number of further wrong rows."""
    if more == 0:
        return error
    what = f"{error.what} (and {more} more {'row' if more == 1 else 'rows'})"
    return DataError(what, where=error.where, expected=error.expected, got=error.got, hint=error.hint)
