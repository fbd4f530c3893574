"""Classification: a text, or a pair of texts, with a label or several.

{"text": "I loved it.", "label": "positive"}
{"text": "It rains.", "text2": "It is dry.", "label": "contradiction"}
{"premise": "It rains.", "hypothesis": "It is dry.", "label": 2}
{"text": "Shares fell before the final.", "labels": ["economy", "sport"]}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, final

from softprompt.data.records import Record
from softprompt.data.row_shapes.base import Match, RowFields, RowShape, Scoring, brief
from softprompt.data.row_shapes.values import as_word

__all__ = ["BETWEEN_LABELS", "LABELS", "NO_LABELS", "SEVERAL_LABELS", "SHAPES", "LabelShape", "LabelsShape"]

BETWEEN_LABELS = ", "
NO_LABELS = "none"  # learned where a row has no labels
_LABEL_COLUMNS = ("labels", "label")
_PAIR = ("text", "text2")  # templates may call the texts so, whatever their columns are called


@final
@dataclass(frozen=True)
class LabelShape(RowShape):
    """A text, or several, with one of a few labels. Numbers and truth values become words: 1, true."""

    source: tuple[str, ...]
    target: str | None
    example: str
    title: str = ""
    optional: tuple[str, ...] = ("idx",)
    kind = "label"
    description = "texts with labels"
    scoring: Scoring = "classification"

    def match(self, row: RowFields) -> Match:
        """Without a label it is another shape. An answer is a label only as a truth value; a list is several labels."""
        label = row.get(str(self.target))
        if super().match(row) != Match.COMPLETE or isinstance(label, list | dict):
            return Match.NO
        return Match.COMPLETE if self.target == "label" or isinstance(label, bool) else Match.NO

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        """Pairs of our own have a second text in every row or in none."""
        names = _PAIR if self.source == ("text",) and "text2" in first else self.source
        texts = {name: self.string(row, name, where) for name in names}
        target = self.parse_target(row, where, require_target=require_target)
        references = self.references(row, target, where)
        fields = dict(zip(_PAIR, texts.values(), strict=False)) | texts | self.other_strings(row, names)
        return Record(fields, target, self.kind, references=references, where=where)

    def parse_target(self, row: RowFields, where: str, *, require_target: bool) -> str | None:
        """The label as text."""
        assert self.target is not None
        word = as_word(row.get(self.target))
        if isinstance(word, list):
            hint = "for several labels in one row, write a list in every row"
            raise self.error(
                where, f"field {self.target!r} must be one label", got=brief(cast(object, word)), hint=hint
            )
        return super().parse_target({**row, self.target: word}, where, require_target=require_target)

    def default_text(self, record: Record) -> str:
        """The text, or both texts."""
        return "{text}\n{text2}" if "text2" in record.fields else "{text}"

    def write(self, record: Record) -> dict[str, object]:
        """Its texts and its label."""
        row: dict[str, object] = {name: record.fields[name] for name in _PAIR if name in record.fields}
        row |= {} if record.target is None else {"label": record.target}
        return row | self.write_rest(record, row)


@final
@dataclass(frozen=True)
class LabelsShape(RowShape):
    """A text with any number of labels, which are learned and answered between commas, in the order of the row."""

    example: str
    target = "labels"
    kind = "labels"
    description = "texts with several labels"
    source = ("text",)
    optional = ("label",)
    scoring: Scoring = "labels"

    def match(self, row: RowFields) -> Match:
        """Only a list is several labels, under either name."""
        fits = "text" in row and any(isinstance(row.get(name), list) for name in _LABEL_COLUMNS)
        return Match.COMPLETE if fits else Match.NO

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        """The labels joined."""
        names = _PAIR if "text2" in first else self.source
        fields = {name: self.string(row, name, where) for name in names} | self.other_strings(row, names)
        name = next((name for name in _LABEL_COLUMNS if name in first), "labels")
        labels = row.get(name)
        if labels is None and not require_target:
            return Record(fields, None, self.kind, where=where)
        if not isinstance(labels, list):
            raise self.error(where, f"field {name!r} must be a list of labels", got=brief(labels))
        words = [self.text(as_word(label), "a label", where) for label in cast(list[object], labels)]
        if odd := [word for word in words if BETWEEN_LABELS.strip() in word]:
            raise self.error(where, "a label holds a comma, which stands between labels", got=repr(odd[0]))
        target = BETWEEN_LABELS.join(dict.fromkeys(words)) or NO_LABELS
        return Record(fields, target, self.kind, references=(target,), where=where)

    def default_text(self, record: Record) -> str:
        """The text, or both texts."""
        return LABELS.default_text(record)

    def write(self, record: Record) -> dict[str, object]:
        """Its texts and the list of its labels."""
        row: dict[str, object] = {name: record.fields[name] for name in _PAIR if name in record.fields}
        if record.target is not None:
            row["labels"] = [] if record.target == NO_LABELS else record.target.split(BETWEEN_LABELS)
        return row | {name: text for name, text in record.fields.items() if name not in row}


LABELS = LabelShape(("text",), "label", '{"text": "I loved it.", "label": "positive"}', optional=())
SEVERAL_LABELS = LabelsShape('{"text": "Shares fell.", "labels": ["economy"]}')


def _glue(*source: str, target: str = "label") -> LabelShape:
    """A shape whose example is made of its columns."""
    texts = ", ".join(f'"{name}": "It rains."' for name in source)
    return LabelShape(source, target, f'{{{texts}, "{target}": {"1" if target == "label" else "true"}}}', "GLUE")


SHAPES = (
    LABELS,
    SEVERAL_LABELS,
    _glue("sentence"),
    _glue("sentence1", "sentence2"),
    _glue("premise", "hypothesis"),
    _glue("question", "sentence"),
    _glue("question1", "question2"),
    _glue("passage", "question"),
    _glue("passage", "question", target="answer"),
    _glue("title", "content"),
    _glue("content"),
    _glue("review"),
)
