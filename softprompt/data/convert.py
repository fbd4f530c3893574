"""Records as rows in our own writing, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from softprompt.data.records import Record
from softprompt.data.row_shapes.base import RowShape
from softprompt.data.row_shapes.registry import shape_named, shape_of
from softprompt.errors import DataError

__all__ = ["described", "own_row", "write_rows"]


def described(record: Record) -> str:
    """The shape that a row was recognized by, for people: "Alpaca (instruction + output)"."""
    shape = shape_named(record.shape)
    title = shape.title if shape is not None else ""
    return f"{title} ({record.shape})" if title else record.shape


def own_row(record: Record) -> dict[str, object]:
    """A record as a row of our own, without the columns of a foreign shape that it was made of."""
    own, written = shape_of(record), shape_named(record.shape)
    if record.rejected is not None:
        return _pair(own, record, record.rejected)
    row = own.write(record)
    if written is None or not written.title:
        return row
    columns = {*written.source, *written.optional, *getattr(written, "texts", ())} - {*own.fields, "text2"}
    return {name: value for name, value in row.items() if name not in columns}


def _pair(own: RowShape, chosen: Record, rejected: Record) -> dict[str, object]:
    """A preference; conversations without a prompt of their own are written whole, as both answers."""
    row, other = own.write(chosen), own.write(rejected)
    answer = "messages" if "messages" in row else "completion"
    return {
        **{name: value for name, value in row.items() if name != answer},
        "chosen": row[answer],
        "rejected": other[answer],
    }


def write_rows(path: Path, records: Sequence[Record], *, overwrite: bool = False) -> None:
    """Write records as JSONL, all or nothing.

    Raises DataError: the file is there already (without `overwrite`), has another suffix, or the disk refuses.
    """
    if path.suffix.lower() != ".jsonl":
        raise DataError("rows are written as JSON lines", where=path, expected="a name that ends in .jsonl")
    if os.path.lexists(path) and not overwrite:
        raise DataError("the file is there already", where=path, hint="another --out, or --overwrite")
    scratch = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(own_row(record), ensure_ascii=False) + "\n")
        os.replace(scratch, path)
    except OSError as error:
        raise DataError("the file cannot be written", where=path, got=error.strerror or str(error)) from error
    finally:
        scratch.unlink(missing_ok=True)
