"""Texts and conversations as the token ids that follow the prefix of a formatted prompt.

How a conversation is read depends on the rows that the soft prompt was trained on:

    conversations         the model's chat template writes all its turns
    chat with a template  the same, and every user's turn goes through the template first
    plain text            the last turn, the user's, is a text of its own; earlier turns are not read
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from softprompt.data.records import Message, Record
from softprompt.data.row_shapes.conversations import CONVERSATIONS, turn_fields
from softprompt.data.spans import prompt_ids
from softprompt.data.template import USER, fill, head, input_record, prompt_text, turns, turns_record, with_system
from softprompt.data.tokenizer import Tokenizer, encode
from softprompt.errors import DataError
from softprompt.formatting.formatted_prompt import FormattedPrompt

_ROLES = ("system", "user", "assistant", "tool")
Turns = Sequence[Message | Mapping[str, object]]  # a conversation, as in rows of messages


def input_ids(
    text: str | Turns, formatted: FormattedPrompt, tokenizer: Tokenizer, where: str = "text", tools: object = None
) -> list[int]:
    """The ids of a text, or of a conversation in which these functions may be called. Raises DataError."""
    if not isinstance(text, str):
        return chat_input_ids(read_turns(text, where, tools), formatted, tokenizer, where)
    if tools:
        raise DataError("tools are for conversations", where=where, expected='"messages": [...]', got="a text")
    return text_input_ids(text, formatted, tokenizer, where)


def read_turns(turns: Turns, where: str = "messages", tools: object = None) -> tuple[Message, ...]:
    """The turns of a conversation, checked as those of a row of data. Raises DataError.

    Args:
        tools: definitions of functions that may be called, as in rows; by default those that the turns bring.
    """
    read = [turn_fields(turn) if isinstance(turn, Message) else dict(turn) for turn in turns]
    brought = next((turn.tools for turn in turns if isinstance(turn, Message) and turn.tools), None)
    row = {"messages": read, "tools": tools or brought}
    return CONVERSATIONS.parse(row, where, first=row, require_target=False).messages


def text_input_ids(text: str, formatted: FormattedPrompt, tokenizer: Tokenizer, where: str = "text") -> list[int]:
    """The ids of one text; for a template with several fields it is a JSON object with them. Raises DataError."""
    return prompt_ids(text_to_record(text, formatted, where), formatted.template, tokenizer)


def chat_input_ids(
    messages: Sequence[Message], formatted: FormattedPrompt, tokenizer: Tokenizer, where: str = "messages"
) -> list[int]:
    """The ids of a conversation, up to where the assistant begins.

    Args:
        messages: turns of the system (the first alone), the user, the assistant, and tools where the soft prompt was
            trained on conversations; the last is the user's or a tool's.
        where: the conversation's place, for messages.

    Raises:
        DataError: other turns, a system turn where the soft prompt brings its own opening, or what the model's chat
            template refuses.
    """
    _check_turns(messages, where)
    template = formatted.template
    if template.kind == "chat" and not template.text:
        return prompt_ids(turns_record(messages, where), template, tokenizer)
    if messages[0].role == "system" and messages[0].content == template.system:
        messages = Message.without_first(messages)
    if messages[0].role == "system":
        raise DataError(
            "this soft prompt brings its own opening, so it takes no system turn",
            where=f"{where}[0]",
            hint="leave the system turn out; --system TEXT in generate and chat replaces the opening's",
        )
    if calling := next((m for m in messages if m.tools or m.calls or m.role == "tool"), None):
        what = "this soft prompt was trained on texts, so it takes no tools"
        raise DataError(what, where=where, got=f"a turn of role {calling.role} with tools, a call or its result")
    if template.kind != "chat":
        return text_input_ids(messages[-1].content, formatted, tokenizer, f"{where}[{len(messages) - 1}]")
    return _filled_ids(messages, formatted, tokenizer, where)


def _filled_ids(messages: Sequence[Message], formatted: FormattedPrompt, tokenizer: Tokenizer, where: str) -> list[int]:
    """Every user's turn through the template, and all turns after the opening, which is part of the prefix."""
    template, opening = formatted.template, head(formatted.template, tokenizer)
    filled = [_filled(message, formatted, f"{where}[{i}]") for i, message in enumerate(messages)]
    text = prompt_text(template, with_system(template, filled), tokenizer)
    if not text.startswith(opening):
        raise DataError("the model's chat template writes this conversation with another opening", where=where)
    return encode(text[len(opening) :], tokenizer)


def _filled(message: Message, formatted: FormattedPrompt, where: str) -> Message:
    if message.role != "user":
        return message
    return Message("user", fill(formatted.template, text_to_record(message.content, formatted, where)))


def _check_turns(messages: Sequence[Message], where: str) -> None:
    for i, message in enumerate(messages):
        if message.role not in _ROLES or (message.role == "system" and i > 0):
            raise DataError(
                "a conversation has a system turn at most first, then turns of user, assistant and tools",
                where=f"{where}[{i}]",
                expected=", ".join(_ROLES),
                got=repr(message.role[:20]),
            )
    if not messages or messages[-1].role not in ("user", "tool"):
        place = f"{where}[{len(messages) - 1}]" if messages else where
        raise DataError("the last turn must be the user's, or a tool's", where=place)


def closing_text(formatted: FormattedPrompt, tokenizer: Tokenizer) -> str:
    """The template's constant text between a text and its answer. Raises DataError for a broken chat template."""
    template = formatted.template
    text = fill(template, input_record(dict.fromkeys(template.names, USER))) if template.text else USER
    if template.kind == "chat":
        text = prompt_text(template, turns(template, text), tokenizer)
    return text.rpartition(USER)[2]


def text_to_record(text: str, formatted: FormattedPrompt, where: str) -> Record:
    """A text as a row of the prompt's template: its one field, or the user's turn of a conversation.

    For a template with several fields it must be a JSON object with these fields; DataError otherwise.
    """
    names = formatted.template.names
    if not names:
        return turns_record([Message("user", text)], where)
    fields = {names[0]: text} if len(names) == 1 else _fields(text, names, where)
    return input_record(fields, where)


def _fields(text: str, names: tuple[str, ...], where: str) -> dict[str, str]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or any(not isinstance(fields.get(name), str) for name in names):
        raise DataError(
            "this soft prompt's template has several fields, so a text must be a JSON object with them",
            where=where,
            expected=json.dumps(dict.fromkeys(names, "...")),
            got=repr(text[:60]),
        )
    return {name: fields[name] for name in names}
