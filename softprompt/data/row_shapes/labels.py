"""Classification: a text, or a pair of texts, with a label.

{"text": "I loved it.", "label": "positive"}
{"text": "It rains.", "text2": "It is dry.", "label": "contradiction"}
"""

from __future__ import annotations

from typing import final

from softprompt.data.records import Record
from softprompt.data.row_shapes.base import Match, RowFields, RowShape, Scoring, brief

__all__ = ["LABELS", "LabelShape"]


@final
class LabelShape(RowShape):
    """A text with one of a few labels. Whole numbers, as class columns hold them, become their digits."""

    kind = "label"
    description = "texts with labels"
    example = '{"text": "I loved it.", "label": "positive"}'
    source = ("text",)
    target = "label"
    scoring: Scoring = "classification"

    def match(self, row: RowFields) -> Match:
        """A text without a label is plain text."""
        match = super().match(row)
        return match if match == Match.COMPLETE else Match.NO

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        """Pairs have a second text in every row or in none."""
        names = ("text", "text2") if "text2" in first else ("text",)
        fields = {name: self.string(row, name, where) for name in names}
        target = self.parse_target(row, where, require_target=require_target)
        references = self.references(row, target, where)
        fields |= self.other_strings(row, names)
        return Record(fields, target, self.kind, references=references, where=where)

    def parse_target(self, row: RowFields, where: str, *, require_target: bool) -> str | None:
        """The label as text."""
        label = row.get("label")
        if isinstance(label, int) and not isinstance(label, bool):
            return str(label)
        if isinstance(label, bool | float):
            hint = 'write the word the model should answer, for example "yes" or "no"'
            raise self.error(where, "field 'label' must be a string or a whole number", got=brief(label), hint=hint)
        return super().parse_target(row, where, require_target=require_target)

    def default_text(self, record: Record) -> str:
        """The text, or both texts."""
        return "{text}\n{text2}" if "text2" in record.fields else "{text}"


LABELS = LabelShape()
