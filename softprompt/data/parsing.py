"""Decoded rows of a file to checked records: the first row decides the shape, and every row is checked against it.

Fields that no shape knows are allowed and become template fields when they are strings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import cast

from softprompt.data.pieces import cut
from softprompt.data.read_options import ReadOptions
from softprompt.data.records import Record
from softprompt.data.row_shapes.base import RowFields, RowShape, brief
from softprompt.data.row_shapes.completions import PROMPT_COMPLETION
from softprompt.data.row_shapes.registry import detect_shape, shape_of
from softprompt.errors import DataError

__all__ = ["parse_rows", "row_faults"]


def parse_rows(
    rows: Iterable[tuple[str, object]], *, require_target: bool = True, options: ReadOptions | None = None
) -> list[Record]:
    """Check rows and turn them into records; texts without answers become several, if they are cut into pieces.

    Args:
        rows: pairs of `file:line` and the decoded row.
        require_target: False for inference files, whose targets may be missing, null or empty.
        options: names of columns, pieces and ends of texts.

    Raises:
        DataError: a row is not an object, has another shape than the first, lacks a field or has one of
            the wrong type. The first bad row is described; the message counts the others.
    """
    records: list[Record] = []
    errors: list[DataError] = []
    options = options or ReadOptions()
    for part in _parsed(rows, options, require_target and not options.prompts):
        if isinstance(part, DataError):
            errors.append(part)
        else:
            records.append(part)
    if errors:
        raise _counted(errors[0], len(errors) - 1)
    return records


def row_faults(rows: Iterable[tuple[str, object]], *, most_faults: int = 20) -> Iterator[Record | DataError]:
    """Check training rows as `parse_rows` does, and go on after a fault: each good row, or what is wrong with one.

    Of preferences both answers are checked.

    Ends after so many faults, or with the fault because of which the file cannot be read on.
    """
    faults = 0
    try:
        for part in _parsed(rows, ReadOptions(pairs=True), require_target=True):
            yield part
            faults += isinstance(part, DataError)
            if faults == most_faults:
                return
    except DataError as error:
        yield error


def _parsed(
    rows: Iterable[tuple[str, object]], options: ReadOptions, require_target: bool
) -> Iterator[Record | DataError]:
    """The records of good rows, and the faults of the others. Raises DataError if reading fails."""
    first: tuple[RowShape, RowFields] | None = None
    kind = ""
    for where, row in _told_apart(rows):
        try:
            fields = options.renamed(_object(row, where), where)
            first = first or (detect_shape(fields, where), fields)
            record = _parse(fields, where, *first, require_target, options)
            if kind and record.kind != kind:
                raise first[0].error(where, f"this row is of kind {record.kind!r}, rows before it are {kind!r}")
        except DataError as error:
            yield error
            continue
        kind = record.kind
        yield from [record] if shape_of(record).has_answers else _in_pieces(record, options)


def _told_apart(rows: Iterable[tuple[str, object]]) -> Iterator[tuple[str, object]]:
    """The rows with places of their own, which they are known by: the second row of a line is `file:line row 2`."""
    seen = Counter[str]()
    for where, row in rows:
        seen[where] += 1
        yield (where if seen[where] == 1 else f"{where} row {seen[where]}"), row


def _object(row: object, where: str) -> RowFields:
    """The row as a mapping."""
    if not isinstance(row, Mapping):
        raise PROMPT_COMPLETION.error(where, "a row must be a JSON object", got=brief(row))
    return cast(RowFields, row)


def _parse(
    row: RowFields, where: str, shape: RowShape, first: RowFields, require_target: bool, options: ReadOptions
) -> Record:
    """One record; tool definitions are refused in rows without turns, whose template has no place for them."""
    record = shape.parse(row, where, first=first, require_target=require_target)
    if row.get("tools") and not record.is_conversation:
        hint = 'write the row as {"messages": [...], "tools": [...]}'
        raise shape.error(where, "tool definitions ('tools') are for conversations", hint=hint)
    return replace(
        record,
        shape=shape.name,
        remark=record.remark or ("" if options.pairs or options.prompts else shape.remark),
        rejected=shape.rejected(row, where) if options.pairs else None,
        source=row if options.prompts else None,
    )


def _in_pieces(record: Record, options: ReadOptions) -> list[Record]:
    """A text without an answer, whole or in pieces; of pieces the last one has the text's end."""
    text = record.fields.get("text")
    size = options.pieces
    if size is None or text is None or len(text.encode("utf-8", "surrogatepass")) <= size:
        return [record if options.learn_end is not False else replace(record, ends=False)]
    pieces = cut(text, size)
    return [
        replace(
            record,
            fields={**record.fields, "text": piece},
            where=f"{record.where} piece {number}",
            ends=number == len(pieces) if options.learn_end is None else options.learn_end,
        )
        for number, piece in enumerate(pieces, start=1)
    ]


def _counted(error: DataError, more: int) -> DataError:
    """The same error with the number of further wrong rows."""
    if more == 0:
        return error
    what = f"{error.what} (and {more} more {'row' if more == 1 else 'rows'})"
    return DataError(what, where=error.where, expected=error.expected, got=error.got, hint=error.hint)
