"""How rows are read where a file does not say it itself: names of columns, pieces of long texts, their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast, final

from softprompt.errors import DataError

__all__ = ["TEXT_PIECES", "ReadOptions", "parse_columns"]

TEXT_PIECES = 2048  # bytes of a piece of a .txt file, about 500 tokens
_ABSENT = object()


@final
@dataclass(frozen=True)
class ReadOptions:
    """How to read rows.

    Attributes:
        columns: our name of a column to the name in the file; see `parse_columns`.
        pieces: texts without answers are cut into pieces of at most so many bytes of UTF-8; None: .txt files only, into
            pieces of `TEXT_PIECES`.
        learn_end: whether the end token is learned behind texts without answers; None: behind whole texts and the last
            piece of those that are cut.
        lenient: leave rows that lack a column of `columns` as they are; for columns that a card remembers.
        pairs: read the rejected answers of preferences, too.
        prompts: answers may be missing, and each record keeps the row that it was read from; for rewards.
    """

    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    pieces: int | None = None
    learn_end: bool | None = None
    lenient: bool = False
    pairs: bool = False
    prompts: bool = False

    def to_dict(self) -> dict[str, object]:
        """What differs from the defaults, as JSON for the card."""
        values: dict[str, object] = {"columns": dict(self.columns), "pieces": self.pieces, "learn_end": self.learn_end}
        return {name: value for name, value in values.items() if value not in (None, {})}

    @staticmethod
    def of_card(values: object) -> ReadOptions:
        """The options that `to_dict` wrote in a card; odd entries are dropped, since a stranger may have made it."""
        found = cast(Mapping[str, object], values) if isinstance(values, Mapping) else dict[str, object]()
        columns, pieces = found.get("columns"), found.get("pieces")
        pairs = cast(Mapping[object, object], columns) if isinstance(columns, Mapping) else dict[object, object]()
        names = {ours: theirs for ours, theirs in pairs.items() if isinstance(ours, str) and isinstance(theirs, str)}
        size = pieces if type(pieces) is int and pieces >= 1 else None
        ends = found.get("learn_end")
        return ReadOptions(names, size, ends if isinstance(ends, bool) else None, lenient=True)

    def renamed(self, row: Mapping[str, object], where: str) -> Mapping[str, object]:
        """The row with its columns under our names. Raises DataError for a column that it lacks."""
        if not self.columns:
            return row
        found = {ours: _joined(row, theirs) for ours, theirs in self.columns.items()}
        if missing := [self.columns[ours] for ours, value in found.items() if value is _ABSENT]:
            if self.lenient:
                return row
            raise DataError(
                f"the row has no column {missing[0]!r}",
                where=where,
                got=f"columns {', '.join(sorted(map(str, row))) or '(none)'}",
                hint="--columns OURS=THEIRS,... with the names of the file on the right",
            )
        used = {part for theirs in self.columns.values() for part in _parts(row, theirs)}
        return {name: value for name, value in row.items() if name not in used} | found


def parse_columns(text: str | None) -> dict[str, str]:
    """`prompt=question,completion=answers.0.text` as our names to theirs.

    On the right `a.0.b` reaches into objects and lists, and `a+b` puts one text below the other; a column that has just
    that name comes first.

    Raises DataError for text of another form.
    """
    columns: dict[str, str] = {}
    for pair in (text or "").split(",") if text else []:
        ours, theirs = (part.strip() for part in (pair.partition("=")[0], pair.partition("=")[2]))
        if not (ours and theirs) or ours in columns:
            raise DataError(
                "columns are renamed by pairs",
                where="--columns",
                expected="OURS=THEIRS,..., for example prompt=question,completion=answer",
                got=repr(pair if not columns.get(ours) else text),
            )
        columns[ours] = theirs
    return columns


def _parts(row: Mapping[str, object], theirs: str) -> list[str]:
    """The columns of the row that an expression uses up whole."""
    return [theirs] if theirs in row else [part.strip() for part in theirs.split("+")]


def _joined(row: Mapping[str, object], theirs: str) -> object:
    """The value of an expression such as "title+answers.0.text"."""
    if theirs in row or "+" not in theirs:
        return _value(row, theirs)
    values = [_value(row, part.strip()) for part in theirs.split("+")]
    if any(value is _ABSENT for value in values):
        return _ABSENT
    return "\n".join(str(value) for value in values if value not in (None, ""))


def _value(row: Mapping[str, object], path: str) -> object:
    """The value at a path such as "answers.0.text"; `_ABSENT` if there is none."""
    if path in row:
        return row[path]
    value: object = row
    for step in path.split("."):
        if isinstance(value, Mapping) and step in value:
            value = cast(Mapping[str, object], value)[step]  # pyright: ignore[reportUnnecessaryCast]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(items := cast(Sequence[object], value)):
            value = items[int(step)]
        else:
            return _ABSENT
    return value
