"""Conversations: a list of messages, of which the assistant's are learned.

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast, final

from softprompt.data.records import Message, Record
from softprompt.data.row_shapes.base import RowFields, RowShape, brief
from softprompt.data.spans import RowEncoder, Span

__all__ = ["CONVERSATIONS", "ConversationShape"]

_ROLES = ("system", "developer", "user", "assistant", "tool")


@final
class ConversationShape(RowShape):
    """Turns of a conversation, written by the model's own chat template."""

    kind = "messages"
    description = "conversations"
    example = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}'
    source = ("messages",)
    target = None

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        """The last turn must be the assistant's if a target is required."""
        return self.parse_lists(row, where, "messages", None, require_target=require_target)

    def parse_lists(
        self, row: RowFields, where: str, given: str, learned: str | None, *, require_target: bool
    ) -> Record:
        """A conversation from one or two fields with lists of messages.

        Args:
            given: the field with all turns, or with those before the learned ones.
            learned: the field with the learned turns; None if there is only one field.
        """
        messages = self._messages(row.get(given), given, where)
        context = len(messages) if learned else 0
        if learned and (row.get(learned) is not None or require_target):
            messages += self._messages(row.get(learned), learned, where)
        last = messages[-1]
        if require_target and last.role != "assistant":
            raise self.error(where, "the last message must be the assistant's, it is what is learned", got=last.role)
        target = last.content if last.role == "assistant" and len(messages) > context else None
        fields = self.other_strings(row, ("prompt", "completion"))
        references = self.references(row, target, where)
        return Record(fields, target, self.kind, tuple(messages), references, where, context)

    def spans(self, record: Record, encoder: RowEncoder) -> list[Span]:
        """Turns given, and of each assistant turn the words and the end learned."""
        return encoder.conversation(record)

    def default_text(self, record: Record) -> str:
        """None: the turns are the text."""
        return ""

    def _messages(self, value: object, name: str, where: str) -> list[Message]:
        """A checked list of turns."""
        if not isinstance(value, list) or not value:
            raise self.error(where, f"field {name!r} must be a list of messages", got=brief(cast(object, value)))
        return [self._message(item, f"{name}[{i}]", where) for i, item in enumerate(cast(list[object], value))]

    def _message(self, item: object, name: str, where: str) -> Message:
        """One checked turn."""
        if not isinstance(item, Mapping):
            raise self.error(where, f"{name} must be an object", got=brief(item))
        turn = cast(Mapping[str, object], item)
        if turn.get("tool_calls"):
            raise self.error(where, f"{name} holds tool calls, which are not supported")
        role = turn.get("role")
        if role not in _ROLES:
            raise self.error(where, f"{name} must have a role of {', '.join(_ROLES)}", got=brief(role))
        return Message(str(role), self.text(turn.get("content"), f"the content of {name}", where))


CONVERSATIONS = ConversationShape()
