"""Rows in memory to decoded rows: lists of dicts, and data sets of the package `datasets`, which is not imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

from softprompt.errors import DataError

__all__ = ["RowSource", "memory_rows"]

Rows: TypeAlias = Iterable[Mapping[str, object]]  # a list of dicts, a `datasets.Dataset`
# Where rows come from: a file, folder or Hub name; rows; or rows by split, such as a `datasets.DatasetDict`.
RowSource: TypeAlias = str | Path | Rows | Mapping[str, Rows]


def memory_rows(rows: object, where: str = "rows") -> Iterator[tuple[str, object]]:
    """Each row with its place, `rows:1` for the first.

    Columns of class labels (`features` of a `datasets.Dataset`) come as the classes' names; class -1 has no label.

    Raises DataError if these are no rows.
    """
    frame = getattr(rows, "to_dict", None)
    if hasattr(rows, "iterrows") and callable(frame):  # a pandas.DataFrame
        rows = frame(orient="records")
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        expected = "a list of dicts, a datasets.Dataset, or a mapping of splits to them"
        raise DataError("these are no rows", where=where, expected=expected, got=type(cast(object, rows)).__name__)
    classes = _class_names(cast(object, rows))
    for number, row in enumerate(cast(Iterable[object], rows), start=1):
        if not isinstance(row, Mapping):
            yield f"{where}:{number}", row
            continue
        yield f"{where}:{number}", {str(name): _plain(value, classes.get(str(name))) for name, value in row.items()}  # pyright: ignore


def _class_names(rows: object) -> dict[str, list[str]]:
    """Names of the classes of each column that holds class numbers."""
    features: object = getattr(rows, "features", None)
    if not isinstance(features, Mapping):
        return {}
    found = {
        str(name): getattr(feature, "names", None) for name, feature in cast(Mapping[str, object], features).items()
    }
    return {
        name: [str(one) for one in cast(Sequence[object], names)]
        for name, names in found.items()
        if isinstance(names, list | tuple)
    }


def _plain(value: object, classes: list[str] | None) -> object:
    """A value as JSON would hold it: numbers of NumPy as Python's, and class numbers as names."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", 1) == 0:
        value = item()
    if classes is not None and isinstance(value, int) and not isinstance(value, bool):
        return classes[value] if 0 <= value < len(classes) else None
    return value
