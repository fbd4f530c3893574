"""Files to decoded rows: JSONL, JSON, CSV and TSV (with a header), Parquet, and text.

Each reader yields (`file:line`, row) and knows nothing about what a row must hold. Text must be UTF-8 (a BOM
is tolerated); lines of JSONL are bounded, and so are whole files that cannot be read line by line.
"""

# pyright: standard
# pyarrow has no types.

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from softprompt.data.json_rows import json_rows
from softprompt.data.tables import table_rows
from softprompt.errors import DataError

__all__ = ["MAX_FILE", "MAX_LINE", "SUFFIXES", "read_rows"]

MAX_LINE = 16 * 2**20
PARQUET_ROWS = 64  # decoded at a time
MAX_FILE = 2**30

RawRow = tuple[str, object]


def read_rows(path: Path, suffix: str | None = None) -> Iterator[RawRow]:
    """The rows of one file, in order, each with its `file:line`.

    Parquet has no lines: there the place reads `file:row N`.

    Args:
        suffix: such as ".jsonl", of a file whose name does not say what it is.

    Raises:
        DataError: the file is missing, has an unknown suffix, is too large or damaged. Raised while the
            rows are read, as far as they come one by one.
    """
    if not path.is_file():
        if path.is_dir():
            raise DataError("is a folder, not a data file", where=path, expected=", ".join(SUFFIXES))
        hint = f"a file ({', '.join(SUFFIXES)}), a folder of them, or a Hub dataset owner/name"
        raise DataError("there is no such data file", where=path, hint=hint)
    suffix = (path.suffix if suffix is None else suffix).lower()
    if suffix not in _READERS:
        got = suffix or "no suffix"
        raise DataError("unknown kind of data file", where=path, expected=", ".join(SUFFIXES), got=got)
    try:
        yield from _READERS[suffix](path)
    except OSError as error:
        raise DataError("the data file cannot be read", where=path, got=error.strerror or str(error)) from error


def _read_jsonl(path: Path) -> Iterator[RawRow]:
    """One JSON value a line; blank lines are skipped."""
    with path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            where = f"{path}:{number}"
            if len(raw) > MAX_LINE:
                raise DataError("the line is too long", where=where, expected=f"at most {MAX_LINE >> 20} MiB")
            text = _decode(raw, path, first_line=number, is_start=number == 1).strip()
            if text:
                yield where, _loads(text, where)


def _loads(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: broken JSON, or a number of absurd length
        raise DataError(
            "the line is not valid JSON",
            where=where,
            expected='one object a line, such as {"prompt": "...", "completion": "..."}',
            got=f"{error}: {text[:60]!r}",
            hint="a list of objects belongs into a .json file" if text.startswith("[") else None,
        ) from error


def _read_json(path: Path) -> Iterator[RawRow]:
    return json_rows(_whole_text(path), path)


def _read_csv(path: Path) -> Iterator[RawRow]:
    return table_rows(_whole_text(path), path)


def _read_tsv(path: Path) -> Iterator[RawRow]:
    return table_rows(_whole_text(path), path, tabs=True)


def _read_text(path: Path) -> Iterator[RawRow]:
    """One row with all the text; line breaks of any system become \n."""
    text = _whole_text(path).replace("\r\n", "\n").replace("\r", "\n")
    if text.strip():
        yield str(path), {"text": text}


def _read_parquet(path: Path) -> Iterator[RawRow]:
    """Rows of a Parquet file; needs the optional package pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Parquet files need pyarrow", where=path, hint="pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            if size > MAX_FILE:
                raise _too_large(path, size)
            number, decoded = 0, 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                decoded += batch.nbytes  # encoded, a repeated cell takes no room: the size above says little
                if decoded > MAX_FILE:
                    raise _too_large(path, decoded)
                rows: list[dict[str, object]] = batch.to_pylist()
                for row in rows:
                    number += 1
                    yield f"{path}:row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError("the Parquet file cannot be read", where=path, got=str(error)) from error


def _whole_text(path: Path) -> str:
    """A whole text file, bounded."""
    size = path.stat().st_size
    if size > MAX_FILE:
        raise _too_large(path, size)
    return _decode(path.read_bytes(), path, first_line=1, is_start=True)


def _too_large(path: Path, size: int) -> DataError:
    return DataError(
        "the data file is too large to be read at once",
        where=path,
        expected=f"at most {MAX_FILE >> 20} MiB",
        got=f"{size >> 20} MiB",
        hint="write it as JSONL, which is read line by line",
    )


def _decode(raw: bytes, path: Path, *, first_line: int, is_start: bool) -> str:
    """UTF-8 bytes as text, without a BOM at the start of the file."""
    try:
        return raw.decode("utf-8-sig" if is_start else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        raise DataError(
            "the file is not UTF-8 text",
            where=f"{path}:{line}",
            got=f"byte 0x{raw[error.start]:02x}",
            hint="save it as UTF-8, for example: iconv -f LATIN1 -t UTF-8 FILE > NEW",
        ) from error


_READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
SUFFIXES = tuple(_READERS)
