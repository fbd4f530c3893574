"""The template that rows get when the user says little or nothing about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from softprompt.data.records import Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.template import Template, fill, thoughts_of
from softprompt.data.thoughts import split_thought
from softprompt.data.tokenizer import Tokenizer, has_chat_template
from softprompt.errors import DataError

__all__ = ["default_template", "default_text", "thinking_rows"]


def default_template(
    records: Sequence[Record], tokenizer: Tokenizer, text: str | None = None, chat: bool | None = None
) -> Template:
    """The template that these rows get when the user says little or nothing.

    Args:
        records: at least one row; all have the same kind.
        text: the user's template; without `chat` it is plain text.
        chat: True or False to insist. None without `text`: chat if the model has a chat template,
            but never for rows of text alone.

    Raises:
        DataError: no rows, an unknown field, chat asked for but not available, or a template for rows
            that are conversations already.
    """
    if not records:
        raise DataError("there are no rows to choose a template for")
    first = records[0]
    if first.is_conversation:
        return _with_thoughts(_messages_template(records, text, chat, tokenizer), records, tokenizer)
    if chat and not has_chat_template(tokenizer):
        raise DataError("chat was asked for, but the tokenizer has no chat template", hint="leave --chat out")
    if text is None:
        text = default_text(first)
        chat = has_chat_template(tokenizer) and shape_of(first).has_answers if chat is None else chat
    template = Template("chat" if chat else "text", text)
    for record in records:
        fill(template, record)
    return _with_thoughts(template, records, tokenizer)


def default_text(record: Record) -> str:
    """The format string of a row without a template: all that is given, and nothing else."""
    return shape_of(record).default_text(record)


def thinking_rows(records: Sequence[Record], template: Template, tokenizer: Tokenizer) -> int:
    """The number of rows whose answer begins with a thought that the model's chat template knows as one."""
    written = thoughts_of(template, tokenizer)
    if written is None:
        return 0
    return sum(split_thought(record.target or "", opened=written.is_opened)[0] is not None for record in records)


def _with_thoughts(template: Template, records: Sequence[Record], tokenizer: Tokenizer) -> Template:
    """The template for a model that thinks before it answers if most rows do so."""
    thinks = 2 * thinking_rows(records, template, tokenizer) > len(records)
    return replace(template, thoughts="given") if thinks else template


def _messages_template(
    records: Sequence[Record], text: str | None, chat: bool | None, tokenizer: Tokenizer
) -> Template:
    """The template of conversations, with the system turn that all of them share."""
    if text is not None:
        raise DataError("rows of messages take no template: they bring their own text", hint="leave --template out")
    if chat is False or not has_chat_template(tokenizer):
        raise DataError(
            "rows of messages need the model's chat template",
            got="--no-chat" if chat is False else "a tokenizer without one",
            hint="use an instruction-tuned model, or write the rows as prompt and completion",
        )
    turns = {record.messages[0].content if record.messages[0].role == "system" else "" for record in records}
    if len(turns) == 1:
        return Template("chat", system=turns.pop())
    return Template("chat", system_from="" if "" in turns else "rows")
