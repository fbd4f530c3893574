"""Language modeling: text without an answer, of which every token is learned.

{"text": "Any text; all of it is learned."}
"""

from __future__ import annotations

import difflib
from typing import final

from softprompt.data.records import Record
from softprompt.data.row_shapes.base import Match, RowFields, RowShape, Scoring
from softprompt.data.row_shapes.labels import LABELS
from softprompt.data.spans import RowEncoder, Span
from softprompt.errors import DataError

__all__ = ["PLAIN_TEXT", "SHAPES", "PlainTextShape"]

_TARGETS = ("label", "completion", "target")
_WITH_ANSWER = 'rows with an answer, such as {"text": ..., "label": ...}'


@final
class PlainTextShape(RowShape):
    """Text whose every token but the first is learned, and the end token after it unless it goes on elsewhere."""

    kind = "text"
    description = "plain text, every token is learned"
    example = '{"text": "Any text; all of it is learned."}'
    source = ("text",)
    target = None
    scoring: Scoring = "loss"

    def match(self, row: RowFields) -> Match:
        """Only rows that have no answer under any known name."""
        return Match.FALLBACK if "text" in row else Match.NO

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        """Fields that are, or are nearly called, a target are refused: nobody means to have them ignored."""
        self._refuse_misspelled(row, where, first)
        if stray := [name for name in _TARGETS if name in row]:
            raise self.error(where, f"rows of text alone have no {stray[0]!r}; the first row has none")
        return super().parse(row, where, first=first, require_target=require_target)

    def spans(self, record: Record, encoder: RowEncoder) -> list[Span]:
        """The first token given, everything after it learned."""
        if encoder.template.kind == "chat":
            raise DataError(
                "rows of text alone are learned whole, a chat template would be learned with them",
                where=record.where,
                expected=_WITH_ANSWER,
                hint="--no-chat, or add the answers",
            )
        if encoder.template.kind == "seq2seq":
            raise DataError(
                "an encoder-decoder learns to answer a text, and rows of text alone have no answers",
                where=record.where,
                expected=_WITH_ANSWER,
            )
        ids = encoder.whole(record) if record.ends else encoder.body(record)
        closing = [encoder.end] if record.ends else []
        if not ids[1:] and not closing:
            raise DataError("a text of one token has none to learn", where=record.where, hint="leave it out")
        return [Span(ids[:1], False), Span([*ids[1:], *closing], True)]

    def default_text(self, record: Record) -> str:
        """The text, or both texts."""
        return LABELS.default_text(record)

    def _refuse_misspelled(self, row: RowFields, where: str, first: RowFields) -> None:
        """Refuse a field that the first row has too and that is nearly called "label"."""
        for key in map(str, first):
            near = difflib.get_close_matches(key.lower(), _TARGETS, n=1, cutoff=0.75)
            if near and key not in near and key in row:
                raise DataError(
                    f"field {key!r} is not known, and rows of text alone are learned whole",
                    where=where,
                    expected=LABELS.example,
                    hint=f"did you mean {near[0]!r}? --columns {near[0]}={key}; if not, rename the field",
                )


PLAIN_TEXT = PlainTextShape()

SHAPES = (PLAIN_TEXT,)
