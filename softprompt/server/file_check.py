"""Checks an uploaded file as `softprompt data check` does, and tells the first faults by their lines."""

from __future__ import annotations

import codecs
from pathlib import Path

from softprompt.data.parsing import row_faults
from softprompt.data.readers import SUFFIXES, read_rows
from softprompt.errors import DataError
from softprompt.server.error_responses import ApiError, invalid, shown_value
from softprompt.server.upload import FILE_FIELD

ROW_SUFFIX, TEXT_SUFFIXES = ".jsonl", (".txt", ".md")
SHOWN_FAULTS = 10
_CHUNK = 2**20


def checked_file(path: Path, filename: str, most_rows: int = 0) -> int:
    """The number of rows of an upload: JSONL, or 0 of a text to distill, whose name ends with .txt or .md.

    Args:
        path: of the content, whose name says nothing.
        most_rows: 0 is no maximum.

    Raises ApiError 400 with the first faults, each with its line.
    """
    suffix = Path(filename).suffix.lower()
    if suffix in TEXT_SUFFIXES:
        _check_text(path)
        return 0
    if suffix in SUFFIXES and suffix != ROW_SUFFIX:
        hint = "softprompt data convert FILE --out rows.jsonl writes it anew"
        raise invalid(f"Rows are uploaded as JSONL, not as {suffix}: {hint}.", FILE_FIELD, "invalid_file_format")
    good, faults = 0, list[DataError]()
    for part in row_faults(read_rows(path, ROW_SUFFIX), most_faults=SHOWN_FAULTS):
        if isinstance(part, DataError):
            faults.append(part)
        else:
            good += 1
        if most_rows and good > most_rows:
            raise ApiError(413, f"The file has more than {most_rows:,} rows.", "too_many_rows", param=FILE_FIELD)
    if faults:
        raise invalid("\n".join(_lines(faults, path)), FILE_FIELD, "invalid_file_format")
    if not good:
        raise invalid("The file has no rows. Write one JSON object a line.", FILE_FIELD, "invalid_file_format")
    return good


def _lines(faults: list[DataError], path: Path) -> list[str]:
    """A line for each fault; the first one also says what is expected."""
    more = "The first ones" if len(faults) == SHOWN_FAULTS else "They"
    first = faults[0]
    further = [f"{name}: {value}" for name in ("expected", "hint") if (value := getattr(first, name)) is not None]
    lines = [f"{_place(fault, path)}: {fault.what}{_got(fault)}" for fault in faults]
    heading = f"The file has rows that cannot be used. {more}:" if len(faults) > 1 else "A row cannot be used."
    return [line.replace(str(path), "the file") for line in (heading, *lines, *further)]


def _place(fault: DataError, path: Path) -> str:
    where = str(fault.where).removeprefix(str(path)).removeprefix(":")
    return f"line {where}" if where[:1].isdecimal() else "the file"


def _got(fault: DataError) -> str:
    return "" if fault.got is None else f" (got {fault.got})"


def _check_text(path: Path) -> None:
    decoder, has_text = codecs.getincrementaldecoder("utf-8-sig")(), False
    line = 1
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                text = decoder.decode(chunk)
                line, has_text = line + text.count("\n"), has_text or bool(text.strip())
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        message = f"The text is not UTF-8: byte {shown_value(hex(error.object[error.start]))} after line {line}."
        raise invalid(message, FILE_FIELD, "invalid_file_format") from error
    if not has_text:
        raise invalid("The file has no text.", FILE_FIELD, "invalid_file_format")
