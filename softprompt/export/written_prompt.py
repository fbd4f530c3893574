"""A whole prompt with reserved ids in it, as ids and, where the tokenizer allows it, as text to paste."""

from __future__ import annotations

from dataclasses import dataclass

from softprompt.data.tokenizer import bos_ids
from softprompt.export.base import ExportSource
from softprompt.export.reserved_ids import ReservedIds
from softprompt.export.row_text import row_text


@dataclass(frozen=True)
class WrittenPrompt:
    """What comes before the user's words and after them.

    Attributes:
        ids: of BOS, lead, virtual tokens and follow.
        text: the same as text, without BOS, which engines add themselves; "" if only ids work.
        opening: constant text between these and the user's words.
        closing: constant text after the user's words, up to where the answer begins.
        one_text: whether the user's words are one text; else a row has several fields, and is written whole.
    """

    ids: tuple[int, ...]
    text: str
    opening: str
    closing: str
    one_text: bool


def write_prompt(source: ExportSource, reserved: ReservedIds) -> WrittenPrompt:
    """The prompt of a row, with reserved ids in place of the virtual tokens."""
    lead, follow = source.around
    layout, lm = source.card.layout, source.lm
    row = row_text(source)
    opening, closing = (row.before, row.after) if row else ("", "")
    ids = (*lead, *reserved.ids, *follow)
    text = layout.lead + reserved.text + layout.follow
    bos = bos_ids(lm.tokenizer) if layout.bos else []
    sample = f"{opening}A text.{closing}"
    reads = [*bos, *lm.encode(text + sample)] == [*ids, *lm.encode(sample)]
    usable = bool(reserved.text) and reads and layout.bos == bool(bos_ids(lm.tokenizer))
    return WrittenPrompt(ids, text if usable else "", opening, closing, row is not None)
