"""The known shapes of rows: add one, find that of a row or a record.

register_shape(Riddle())
shape = detect_shape({"question": ..., "choices": [...], "answer": 1}, "f.jsonl:1")
shape_of(record).scoring        # "choices"

A file of this package registers the shapes in its `SHAPES`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from typing import cast

import softprompt.data.row_shapes
from softprompt.data.records import Record
from softprompt.data.row_shapes.base import Match, RowFields, RowShape
from softprompt.data.row_shapes.unknown import unknown_row
from softprompt.errors import DataError

__all__ = ["detect_shape", "register_shape", "row_shapes", "shape_named", "shape_of", "unregister_shape"]

_shapes: list[RowShape] = []


def _known() -> list[RowShape]:
    """The registered shapes; those of this package come first, and are found when they are first asked for."""
    if not _shapes:
        package = softprompt.data.row_shapes
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            _shapes.extend(cast(Sequence[RowShape], getattr(module, "SHAPES", ())))
    return _shapes


def register_shape(shape: RowShape) -> None:
    """Make a shape known; of several that fit a row equally well the first registered one is meant.

    Raises:
        ValueError: a known shape has the same fields.
    """
    if any(known.name == shape.name for known in _known()):
        raise ValueError(f"a shape with the fields {shape.name} is registered already")
    _shapes.append(shape)


def unregister_shape(shape: RowShape) -> None:
    """Forget a shape. Raises ValueError if it is not registered."""
    _known().remove(shape)


def row_shapes() -> tuple[RowShape, ...]:
    """All known shapes."""
    return tuple(_known())


def shape_of(record: Record) -> RowShape:
    """How a record is learned and scored: the first shape of its kind."""
    return next(shape for shape in _known() if shape.kind == record.kind)


def shape_named(name: str) -> RowShape | None:
    """The shape with these fields, such as `Record.shape` names; None for one that is not registered."""
    return next((shape for shape in _known() if shape.name == name), None)


def detect_shape(row: RowFields, where: str) -> RowShape:
    """The shape of a file's first row, by its fields.

    Complete shapes come before those whose target is missing, shapes that read more of the row before those that read a
    part of that, choices before others, our own writing before other data sets'; plain text is what is left.

    Raises:
        DataError: no shape, or several that would be learned in different ways.
    """
    given = {name: value for name, value in row.items() if value is not None}
    matches = [(shape, max(shape.match(row), shape.match(given))) for shape in _known()]
    complete = [shape for shape, _ in matches if shape.match(given) == Match.COMPLETE]
    complete = complete or [shape for shape, match in matches if match == Match.COMPLETE]
    incomplete = [shape for shape, match in matches if match == Match.INCOMPLETE]
    fallback = [shape for shape, match in matches if match == Match.FALLBACK]
    rivals = _preferred(complete or incomplete, given)
    if not complete and fallback and (not rivals or rivals[0].title):
        rivals = fallback
    if not rivals:
        raise unknown_row(row, where, _known())
    if len({shape.kind for shape in rivals}) > 1:
        has = ", ".join(sorted(shape.fields[0] for shape in rivals))
        raise DataError(
            f"the row could be read in more than one way (it has {has})",
            where=where,
            expected=f"one of {', '.join(shape.name for shape in rivals)}",
            hint="rename or remove the fields that are not meant; --columns NEW=OLD renames",
        )
    return rivals[0]


def _preferred(shapes: list[RowShape], row: RowFields) -> list[RowShape]:
    """The shapes that are most likely meant."""
    reads = [shape.reads(row) for shape in shapes]
    shapes = [shape for shape in shapes if not any(shape.reads(row) < other for other in reads)]
    for better in (_with_choices(shapes), _own(shapes)):
        shapes = better or shapes
    return shapes


def _with_choices(shapes: Iterable[RowShape]) -> list[RowShape]:
    return [shape for shape in shapes if shape.scoring == "choices"]


def _own(shapes: Iterable[RowShape]) -> list[RowShape]:
    """Shapes without a title of their own: ours and the user's."""
    return [shape for shape in shapes if not shape.title]
