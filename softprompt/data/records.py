"""A row of data in normal form: `Record`, and `Message` for the turns of conversations.

Which rows become records, and how, is written down in `row_shapes`. Knows nothing about files, templates or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

__all__ = ["Message", "Record"]


@final
@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@final
@dataclass(frozen=True)
class Record:
    """One normal row, whatever file it came from.

    Attributes:
        fields: template fields (text, text2, prompt, ... and any further string field; never the target).
            Rows of kind "completion" have both `prompt` and `input`, with the same value.
        target: label or completion; for conversations the last assistant turn. None: nothing to learn.
        kind: name of the row's shape, see `row_shapes`.
        messages: for conversations all turns; else empty.
        references: every right answer, for generation metrics; `(target,)` unless the row lists more.
        where: `file:line`.
        context: for conversations the number of first turns that are not learned, although assistant turns may be
            among them (the prompt of a prompt/completion row written as message lists).
    """

    fields: Mapping[str, str]
    target: str | None
    kind: str
    messages: tuple[Message, ...] = ()
    references: tuple[str, ...] = ()
    where: str = ""
    context: int = 0

    @property
    def is_conversation(self) -> bool:
        """Whether the row brings its own turns, and so takes no template with text."""
        return bool(self.messages)
