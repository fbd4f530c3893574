"""A row of data in normal form: `Record`, and `Message` for the turns of conversations.

Which rows become records, and how, is written down in `row_shapes`. Knows nothing about files, templates or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

__all__ = ["Message", "Record"]


@final
@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        calls: JSON list of the functions that the assistant calls, as chat templates read them; empty for none.
        tools: JSON list of the functions that may be called in this conversation, on its first turn; empty for none.
        name: of the function whose result a turn of role "tool" is; often empty.
        call_id: of the call that it answers; often empty.
    """

    role: str
    content: str
    calls: str = ""
    tools: str = ""
    name: str = ""
    call_id: str = ""

    @staticmethod
    def without_first(messages: Sequence[Message]) -> tuple[Message, ...]:
        """The turns after the first one; the conversation's tools go on to the next."""
        first, *rest = messages
        return (replace(rest[0], tools=rest[0].tools or first.tools), *rest[1:]) if rest else ()


@final
@dataclass(frozen=True)
class Record:
    """One normal row, whatever file it came from.

    Attributes:
        fields: template fields (text, text2, prompt, ... and any further string field; never the target).
            Rows of kind "completion" in our own writing have both `prompt` and `input`, with the same value.
        target: label or completion; for conversations the last assistant turn. None: nothing to learn.
        kind: "label", "labels", "choices", "completion", "messages", "text", or that of a shape of your own. It decides
            what is learned and how answers are scored.
        messages: for conversations all turns; else empty.
        references: every right answer, for generation metrics; `(target,)` unless the row lists more.
        where: `file:line`.
        context: for conversations the number of first turns that are not learned, although assistant turns may be
            among them (the prompt of a prompt/completion row written as message lists).
        choices: the answers that this row alone has to choose from, in order; `target` is one of them.
        ends: for texts without answers, whether the end token is learned after the text.
        shape: name of the shape that the row was written in.
        remark: what was left out or added when the row was read, for people.
        rejected: of a preference, the same row with the rejected answer in place of the chosen one; see
            `ReadOptions.pairs`.
        source: the row as it was read, under our names of columns; see `ReadOptions.prompts`.
    """

    fields: Mapping[str, str]
    target: str | None
    kind: str
    messages: tuple[Message, ...] = ()
    references: tuple[str, ...] = ()
    where: str = ""
    context: int = 0
    choices: tuple[str, ...] = ()
    ends: bool = True
    shape: str = field(default="", compare=False)
    remark: str = field(default="", compare=False)
    rejected: Record | None = None
    source: Mapping[str, object] | None = field(default=None, compare=False, repr=False)

    @property
    def is_conversation(self) -> bool:
        """Whether the row brings its own turns, and so takes no template with text."""
        return bool(self.messages)
