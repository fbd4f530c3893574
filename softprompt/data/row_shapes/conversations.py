"""Conversations: a list of messages, of which the assistant's are learned.

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ...]}
{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "system": "Be kind."}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast, final

from softprompt.data.records import Message, Record
from softprompt.data.row_shapes.base import RowFields, RowShape, brief
from softprompt.data.row_shapes.tool_calls import calls_of, tools_of
from softprompt.data.spans import RowEncoder, Span

__all__ = ["CONVERSATIONS", "SHAPES", "TRIMMED", "ConversationShape", "turn_fields"]

TRIMMED = "turns before the first question or after the last answer are left out"

_ROLES = ("system", "developer", "user", "assistant", "tool")
# ShareGPT's words for the roles, and those of its many descendants.
_OTHER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}


@final
@dataclass(frozen=True)
class ConversationShape(RowShape):
    """Turns of a conversation, written by the model's own chat template.

    Attributes:
        trims: whether turns before the first question and after the last answer are left out; otherwise the latter are
            an error.
    """

    source: tuple[str, ...]
    example: str
    title: str = ""
    optional: tuple[str, ...] = ()
    trims: bool = False
    kind = "messages"
    description = "conversations"
    target = None

    def parse(self, row: RowFields, where: str, *, first: RowFields, require_target: bool = True) -> Record:
        """The last turn must be the assistant's if a target is required."""
        return self.parse_lists(row, where, self.source[0], None, require_target=require_target)

    def parse_lists(
        self, row: RowFields, where: str, given: str, learned: str | None, *, require_target: bool
    ) -> Record:
        """A conversation from one or two fields with lists of messages.

        Args:
            given: the field with all turns, or with those before the learned ones.
            learned: the field with the learned turns; None if there is only one field.
        """
        messages, remark = self._messages(row.get(given), given, where), ""
        if "system" in self.optional and messages[0].role not in ("system", "developer"):
            messages = self.system_turn(row, where) + messages
        if self.trims:
            messages, remark = self._trimmed(messages, where, require_target)
        context = len(messages) if learned else 0
        if learned and (row.get(learned) is not None or require_target):
            messages += self._messages(row.get(learned), learned, where)
        last = messages[-1]
        if require_target and last.role != "assistant":
            raise self.error(where, "the last message must be the assistant's, it is what is learned", got=last.role)
        target = last.content + last.calls if last.role == "assistant" and len(messages) > context else None
        if tools := tools_of(row.get("tools"), lambda what, got: self.error(where, what, got=brief(got))):
            messages = [replace(messages[0], tools=tools), *messages[1:]]
        fields = self.other_strings(row, ("prompt", "completion", *([learned] if learned else [])))
        references = self.references(row, target, where)
        return Record(fields, target, self.kind, tuple(messages), references, where, context, remark=remark)

    def rows(self, record: Record, encoder: RowEncoder) -> list[list[Span]]:
        """Turns given, and of each assistant turn the words and the end learned."""
        return encoder.conversation(record)

    def default_text(self, record: Record) -> str:
        """None: the turns are the text."""
        return ""

    def write(self, record: Record) -> dict[str, object]:
        """The turns in one list, or in two if only the last of them are learned."""
        turns = [turn_fields(turn) for turn in record.messages]
        row: dict[str, object] = {"messages": turns}
        if record.context:
            row = {"prompt": turns[: record.context], "completion": turns[record.context :]}
        if tools := record.messages[0].tools:
            row["tools"] = json.loads(tools)
        return row | self.write_rest(record, row)

    def system_turn(self, row: RowFields, where: str) -> list[Message]:
        """The words of the field "system" as a turn; none if it is missing or empty."""
        words = row.get("system")
        if words is None or words == "":
            return []
        return [Message("system", self.text(words, "field 'system'", where))]

    def turn(self, item: object, name: str, where: str) -> Message:
        """One checked turn; `name` is its place in the row."""
        if not isinstance(item, Mapping):
            raise self.error(where, f"{name} must be an object", got=brief(item))
        turn = cast(Mapping[str, object], item)
        calls = calls_of(turn, lambda what, got: self.error(where, f"{name}: {what}", got=brief(got)))
        role = turn.get("role", turn.get("from"))
        role = _OTHER_ROLES.get(role, role) if isinstance(role, str) else role
        if role not in _ROLES:
            raise self.error(where, f"{name} must have a role of {', '.join(_ROLES)}", got=brief(role))
        said = "" if turn.get("from") == "function_call" else turn.get("content", turn.get("value"))
        content = "" if calls and not said else self._words(said, f"the content of {name}", where)
        thought = turn.get("reasoning_content") if role == "assistant" else None
        if isinstance(thought, str) and thought.strip():
            content = f"<think>\n{thought.strip()}\n</think>\n\n{content}"
        if calls and role != "assistant":
            raise self.error(where, f"{name} holds tool calls, and is not the assistant's", got=brief(role))
        of_tool = {key: str(turn.get(key) or "") for key in ("name", "tool_call_id")} if role == "tool" else {}
        return Message(str(role), content, calls, name=of_tool.get("name", ""), call_id=of_tool.get("tool_call_id", ""))

    def _words(self, content: object, name: str, where: str) -> str:
        """The text of a turn; text parts are joined, as OpenAI's clients send them."""
        if not isinstance(content, list):
            return self.text(content, name, where)
        words: list[str] = []
        for part in cast(list[object], content):
            fields = cast(Mapping[str, object], part) if isinstance(part, Mapping) else {"type": "text", "text": part}
            kind = fields.get("type")
            if kind not in ("text", "input_text", "output_text"):
                hint = "leave such parts out: only what is said in words is learned"
                raise self.error(where, f"{name} holds a part that is no text", got=brief(kind), hint=hint)
            words.append(str(fields.get("text", "")))
        return self.text("".join(words), name, where)

    def _messages(self, value: object, name: str, where: str) -> list[Message]:
        """A checked list of turns."""
        if not isinstance(value, list) or not value:
            raise self.error(where, f"field {name!r} must be a list of messages", got=brief(cast(object, value)))
        return [self.turn(item, f"{name}[{i}]", where) for i, item in enumerate(cast(list[object], value))]

    def _trimmed(self, messages: list[Message], where: str, require_target: bool) -> tuple[list[Message], str]:
        """The turns from the first question to the last answer, and a remark if others were left out."""
        opening = 1 if messages[0].role in ("system", "developer") else 0
        start, stop = opening, len(messages)
        while start < stop and messages[start].role == "assistant":
            start += 1
        while require_target and stop > start and messages[stop - 1].role != "assistant":
            stop -= 1
        if start == stop:
            raise self.error(where, "the conversation has no answer to a question")
        remark = TRIMMED if start > opening or stop < len(messages) else ""
        return [*messages[:opening], *messages[start:stop]], remark


def turn_fields(message: Message) -> dict[str, object]:
    """A turn as it is written in a row of messages; its conversation's tools stand beside the messages."""
    turn: dict[str, object] = {"role": message.role, "content": message.content}
    if message.calls:
        turn["tool_calls"] = json.loads(message.calls)
    return turn | {k: v for k, v in (("name", message.name), ("tool_call_id", message.call_id)) if v}


CONVERSATIONS = ConversationShape(
    ("messages",), '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}'
)


def _share_gpt(name: str) -> ConversationShape:
    example = f'{{"{name}": [{{"from": "human", "value": "Hi"}}, {{"from": "gpt", "value": "Hello!"}}]}}'
    return ConversationShape((name,), example, "ShareGPT", ("system",), trims=True)


SHAPES = (CONVERSATIONS, _share_gpt("conversations"), _share_gpt("conversation"))
