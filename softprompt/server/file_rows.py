"""Rows of an uploaded file in one form, whatever shape they were written in: a conversation and its right answers."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Literal

from typing_extensions import TypedDict

from softprompt.data.default_template import default_text
from softprompt.data.parsing import row_faults
from softprompt.data.readers import read_rows
from softprompt.data.records import Message, Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.template import Template, fill
from softprompt.errors import DataError
from softprompt.server.error_responses import from_text, invalid

_LINE = re.compile(r"[0-9]+")


class RowTurn(TypedDict):
    """A turn of a row's conversation."""

    role: str
    content: str


class FileRow(TypedDict):
    """A row.

    `messages` end before the answer; a row of fields is one turn of the user. `fields` are the strings of the row, for
    models whose template has several (`fields` of /v1/models). Each of `references` is right; empty: the row has no
    answer. `choices` are the row's own. With `tools` the conversation has functions, whose calls `messages` leave out.
    """

    line: int
    kind: str
    scoring: Literal["classification", "choices", "generation", "labels", "loss"]
    messages: list[RowTurn]
    fields: dict[str, str]
    references: list[str]
    choices: list[str]
    tools: bool


class FileRowList(TypedDict):
    """A page of rows."""

    object: Literal["list"]
    data: list[FileRow]
    has_more: bool


def row_page(path: Path, after: int, limit: int) -> FileRowList:
    """At most `limit` rows behind the first `after`. Raises ApiError for a file without rows."""
    found = list(islice(row_faults(read_rows(path, ".jsonl")), after, after + limit + 1))
    rows = list[FileRow]()
    for record in found[:limit]:
        if isinstance(record, DataError):
            raise invalid("The file has no rows: it is a text, or the result of a job.", "file_id", "no_rows")
        rows.append(_row(record, path))
    return {"object": "list", "data": rows, "has_more": len(found) > limit}


def _row(record: Record, path: Path) -> FileRow:
    line = _LINE.search(record.where.removeprefix(str(path)))
    messages = _question(record)
    return {
        "line": int(line[0]) if line else 0,
        "kind": record.kind,
        "scoring": shape_of(record).scoring,
        "messages": [{"role": turn.role, "content": turn.content} for turn in messages if _is_words(turn)],
        "fields": dict(record.fields),
        "references": list(record.references) if record.target is not None else [],
        "choices": list(record.choices),
        "tools": any(not _is_words(turn) or turn.tools for turn in record.messages),
    }


def _question(record: Record) -> tuple[Message, ...]:
    """The turns before the answer."""
    if record.is_conversation:
        return record.messages if record.target is None else record.messages[:-1]
    try:
        return (Message("user", fill(Template("text", default_text(record)), record)),)
    except DataError as error:
        raise from_text(error, "file_id") from error


def _is_words(turn: Message) -> bool:
    return turn.role != "tool" and not turn.calls
