"""`RowShape`: one accepted way to write a row, from its fields to its score.

    class Rationale(RowShape):
        kind, description = "rationale", "questions with a rationale"
        source, target = ("question", "rationale"), "answer"
        example = '{"question": "2 + 2?", "rationale": "Two and two.", "answer": "4"}'

    registry.register_shape(Rationale())

Such a shape is complete: strings are checked, `{question}\n{rationale}` is the default template, the answer is
learned, and generated answers are compared with it. Methods are overridden where a shape differs.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Literal, cast

from softprompt.data.records import Record
from softprompt.data.row_shapes.names import columns_flag, likely_column
from softprompt.data.spans import RowEncoder, Span
from softprompt.errors import DataError

__all__ = ["Match", "RowFields", "RowShape", "Scoring", "brief"]

RowFields = Mapping[str, object]
Scoring = Literal["classification", "choices", "generation", "labels", "loss"]


class Match(IntEnum):
    """How well the fields of a row fit a shape.

    NO: another shape. FALLBACK: this shape, if no other fits. INCOMPLETE: the target is missing. COMPLETE: all fields.
    """

    NO = 0
    FALLBACK = 1
    INCOMPLETE = 2
    COMPLETE = 3


class RowShape(ABC):
    """One accepted way to write a row.

    Attributes:
        kind: of the records that it makes. Shapes of one kind are learned and scored alike; all rows of a run have the
            same kind. The first registered shape of a kind is that kind in our own writing.
        title: name for people, such as "Alpaca"; empty: the fields.
        description: for people, such as "texts with labels".
        example: a right row, as JSON; error messages show it.
        source: fields that the model reads; each is a non-empty string unless `parse` decides otherwise.
        target: field that the model learns; None if there is none.
        optional: further fields that the shape reads where a row has them.
        scoring: "classification" (all targets of the training rows are ranked by log-likelihood), "choices" (those of
            the row itself are), "generation" (an answer is generated and compared with the references), "labels" (it
            is compared as a set of labels) or "loss" (of the learned tokens).
        remark: what is not learned of such rows, for people; empty if nothing is left out.
    """

    kind: str
    title: str = ""
    description: str
    example: str
    source: tuple[str, ...]
    target: str | None
    optional: tuple[str, ...] = ()
    scoring: Scoring = "generation"
    remark: str = ""

    @property
    def name(self) -> str:
        """The fields, which tell shapes of the same kind apart: "prompt + completion"."""
        return " + ".join(self.fields)

    @property
    def fields(self) -> tuple[str, ...]:
        """The required fields."""
        return (*self.source, *([self.target] if self.target else []))

    @property
    def has_classes(self) -> bool:
        """Whether the targets are classes, each of which must occur in training."""
        return self.scoring == "classification"

    @property
    def has_answers(self) -> bool:
        """Whether a row is a question and an answer; False: all of its text is learned."""
        return self.scoring != "loss"

    # Rows to records

    def match(self, row: RowFields) -> Match:
        """How well a file's first row fits, by its fields."""
        if any(name not in row for name in self.source):
            return Match.NO
        return Match.COMPLETE if self.target is None or self.target in row else Match.INCOMPLETE

    def reads(self, row: RowFields) -> frozenset[str]:
        """The fields of a row that this shape would read; of two shapes that fit, the one that reads more is meant."""
        return frozenset(name for name in (*self.fields, *self.optional) if row.get(name) is not None)

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        """One checked record.

        Args:
            row: a JSON object.
            where: `file:line`.
            first: the first row of the file, which the others must agree with.
            require_target: False for inference files, whose targets may be missing, null or empty.

        Raises:
            DataError: a field is missing or has the wrong type.
        """
        fields = {name: self.string(row, name, where) for name in self.source}
        target = self.parse_target(row, where, require_target=require_target)
        references = self.references(row, target, where)
        return Record(fields | self.other_strings(row), target, self.kind, references=references, where=where)

    def parse_target(self, row: RowFields, where: str, *, require_target: bool) -> str | None:
        """The target; None where it may be missing and is. Raises DataError if it is not a string."""
        if self.target is None or (not require_target and row.get(self.target) in (None, "")):
            return None
        return self.string(row, self.target, where)

    def rejected(self, row: RowFields, where: str) -> Record | None:
        """The row with its rejected answer in place of the chosen one; None for shapes that hold no such answers.

        Raises:
            DataError: the rejected answer is missing or unusable.
        """
        return None

    # Records to texts and tokens

    def default_text(self, record: Record) -> str:
        """The template of a run without `--template`: all source fields, a line each."""
        return "\n".join(f"{{{name}}}" for name in self.source if name in record.fields)

    def spans(self, record: Record, encoder: RowEncoder) -> list[Span]:
        """Token ids of a training row, in order, each span with whether it is learned.

        Raises:
            DataError: the row has no target or no text, or does not fit the template.
        """
        if record.target is None:
            raise DataError("the row has no target to learn", where=record.where)
        return [Span(encoder.body(record), False), Span([*encoder.target(record.target), encoder.end], True)]

    def rows(self, record: Record, encoder: RowEncoder) -> list[list[Span]]:
        """The spans of each row that is trained on; several for a conversation whose earlier turns are rewritten.

        Raises:
            DataError: as `spans`.
        """
        return [self.spans(record, encoder)]

    def write(self, record: Record) -> dict[str, object]:
        """A record of this kind as a row of this shape, which reads as the same record.

        Further right answers are in "references", and the other fields are kept.
        """
        row: dict[str, object] = {name: record.fields[name] for name in self.source if name in record.fields}
        if self.target is not None and record.target is not None:
            row[self.target] = record.target
        return row | self.write_rest(record, row)

    def write_rest(self, record: Record, row: Mapping[str, object]) -> dict[str, object]:
        """The fields of a record that are not in `row` yet, and its references where there are several."""
        rest: dict[str, object] = {
            name: text for name, text in record.fields.items() if name not in row and name not in self.fields
        }
        if len(record.references) > 1 or (record.references and record.target is None):
            rest["references"] = list(record.references)
        return rest

    # Checks and error messages

    def error(self, where: str, what: str, *, got: object = None, hint: str | None = None) -> DataError:
        """An error that shows a right row of this shape."""
        return DataError(what, where=where, expected=self.example, got=got, hint=hint)

    def string(self, row: RowFields, name: str, where: str) -> str:
        """A field that must be a non-empty string. Raises DataError otherwise."""
        if row.get(name) is None:
            names, likely = ", ".join(sorted(map(str, row))), likely_column(name, row)
            hint = columns_flag({name: likely}) if likely is not None else None
            raise self.error(where, f"field {name!r} is missing", got=f"fields {names}", hint=hint)
        return self.text(row[name], f"field {name!r}", where)

    def text(self, value: object, what: str, where: str) -> str:
        """A value that must be a non-empty string of UTF-8; `what` names it in the DataError."""
        if not isinstance(value, str):
            hint = "put the number in quotes" if isinstance(value, int | float) else None
            raise self.error(where, f"{what} must be a string", got=brief(value), hint=hint)
        if not value.strip():
            raise self.error(where, f"{what} is empty", got=repr(value))
        # JSON can spell half of a surrogate pair; no tokenizer takes it.
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise self.error(where, f"{what} holds half of a surrogate pair, which is not text", got=brief(value))
        return value

    def references(self, row: RowFields, target: str | None, where: str) -> tuple[str, ...]:
        """Every right answer, the target first, without repeats; the field "references" lists further ones."""
        answers = [] if target is None else [target]
        if (listed := row.get("references")) is not None:
            if not isinstance(listed, list) or not listed:
                raise self.error(where, "field 'references' must be a list of strings", got=brief(row["references"]))
            answers += [self.text(item, "a reference", where) for item in cast(list[object], listed)]
        return tuple(dict.fromkeys(answers))

    def other_strings(self, row: RowFields, names: Iterable[str] = ()) -> dict[str, str]:
        """Further string fields, which a template may use: all but the shape's own, `names` and "references"."""
        used = {*self.fields, *self.optional, *names, "references"}
        return {key: value for key, value in row.items() if isinstance(value, str) and key not in used}


def brief(value: object) -> str:
    """A value for an error message: its type and the first 60 characters."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
