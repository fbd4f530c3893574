"""Conversations in which functions may be called, as the chat template of a soft prompt writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from softprompt.data.call_format import call_format, in_plain_turns, tools_text
from softprompt.data.records import Message
from softprompt.data.template import VIRTUAL, Template
from softprompt.data.tokenizer import Tokenizer, writes_system_turn


def with_tools(
    messages: Sequence[Message], tools: str, template: Template, tokenizer: Tokenizer
) -> tuple[Message, ...]:
    """The turns with definitions of functions, as rows of data have them where the chat template writes tools.

    Elsewhere definitions are words of the system turn, or of the first turn where there can be none; calls are words of
    the assistant, and results of the user.

    Args:
        tools: definitions as JSON (`Message.tools`); "" for none, in a conversation that may have calls nevertheless.
    """
    found = call_format(tokenizer, template.chat_template)
    if not messages or found is None or found.is_known:
        return (replace(messages[0], tools=tools), *messages[1:]) if messages else ()
    first, *rest = in_plain_turns(messages)
    if not tools:
        return (first, *rest)
    words = tools_text(tools)
    brings = first.role == "system"
    if brings or template.system == VIRTUAL or template.system_from or not writes_system_turn(tokenizer):
        shown = f"{first.content}\n\n{words}" if brings else f"{words}\n\n{first.content}"
        return (replace(first, content=shown), *rest)
    system = f"{template.system}\n\n{words}" if template.system else words
    return (Message("system", system), first, *rest)
