"""The known shapes of rows: add one, find that of a row or a record.

register_shape(MultipleChoice())
shape = detect_shape({"question": ..., "choices": [...], "answer": 1}, "f.jsonl:1")
shape_of(record).scoring        # "classification"
"""

from __future__ import annotations

from softprompt.data.records import Record
from softprompt.data.row_shapes.base import Match, RowFields, RowShape
from softprompt.data.row_shapes.completions import INPUT_TARGET, PROMPT_COMPLETION
from softprompt.data.row_shapes.conversations import CONVERSATIONS
from softprompt.data.row_shapes.labels import LABELS
from softprompt.data.row_shapes.plain_text import PLAIN_TEXT
from softprompt.errors import DataError

__all__ = ["detect_shape", "register_shape", "row_shapes", "shape_of", "unregister_shape"]

_shapes: list[RowShape] = [LABELS, PROMPT_COMPLETION, INPUT_TARGET, CONVERSATIONS, PLAIN_TEXT]


def register_shape(shape: RowShape) -> None:
    """Make a shape known; rows are matched with the shapes in the order of registration.

    Raises:
        ValueError: a known shape has the same fields.
    """
    if any(known.name == shape.name for known in _shapes):
        raise ValueError(f"a shape with the fields {shape.name} is registered already")
    _shapes.append(shape)


def unregister_shape(shape: RowShape) -> None:
    """Forget a shape. Raises ValueError if it is not registered."""
    _shapes.remove(shape)


def row_shapes() -> tuple[RowShape, ...]:
    """All known shapes."""
    return tuple(_shapes)


def shape_of(record: Record) -> RowShape:
    """The shape of a record, by its kind."""
    return next(shape for shape in _shapes if shape.kind == record.kind)


def detect_shape(row: RowFields, where: str) -> RowShape:
    """The shape of a file's first row, by the names of its fields.

    Complete shapes come before those whose target is missing, and shapes with more fields before those with a part
    of them; plain text is what is left.

    Raises:
        DataError: no shape, or several.
    """
    matches = {shape.name: shape.match(row) for shape in _shapes}
    complete = [shape for shape in _shapes if matches[shape.name] == Match.COMPLETE]
    incomplete = [shape for shape in _shapes if matches[shape.name] == Match.INCOMPLETE]
    fallback = [shape for shape in _shapes if matches[shape.name] == Match.FALLBACK]
    rivals = _most_specific(complete or incomplete)
    rivals += [shape for shape in incomplete if shape not in rivals and rivals[0].kind == shape.kind]
    if len(rivals) > 1:
        raise DataError(
            f"the row could be read in more than one way (it has {', '.join(sorted(s.source[0] for s in rivals))})",
            where=where,
            expected=f"one of {', '.join(shape.name for shape in _shapes)}",
            hint="rename or remove the fields that are not meant",
        )
    if not rivals and not fallback:
        raise _unknown(row, where)
    return (rivals or fallback)[0]


def _most_specific(shapes: list[RowShape]) -> list[RowShape]:
    """The shapes without those that have a part of another's fields."""
    return [shape for shape in shapes if not any(set(shape.fields) < set(other.fields) for other in shapes)]


def _unknown(row: RowFields, where: str) -> DataError:
    """An error that shows a right row of each kind."""
    examples: dict[str, str] = {}
    for shape in _shapes:
        if shape.has_answers:
            examples.setdefault(shape.kind, shape.example)
    return DataError(
        "the row has none of the known fields",
        where=where,
        expected="  or  ".join(examples.values()),
        got=f"fields {', '.join(sorted(map(str, row))) or '(none)'}",
        hint="ShareGPT rows: rename 'conversations' to 'messages', 'from'/'value' to 'role'/'content'"
        if "conversations" in row
        else "rename your fields, for example 'question' to 'prompt' and 'answer' to 'completion'",
    )
