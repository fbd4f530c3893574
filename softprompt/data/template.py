"""How a record becomes text: a constant opening (`head`), what varies per row (`body`), then the target.

    plain   Review: |{text}\\nSentiment:| positive<eos>              head | body | target + end
    chat    <system turn><user|>\\n{text}<end>\\n<assistant>\\n|positive<end>

The head is the same for every row, so it is part of the prefix and computed once. Whitespace at its end is
left to the body, because tokenizers merge a space with the word that follows. Head, body and target are
tokenized apart and joined as ids; the BOS is in none of them. A system turn of `VIRTUAL` marks where virtual tokens
stand for its words. How a reasoning model's thoughts are written is in `thoughts`. An encoder–decoder reads head and
body in its encoder and writes the target, as a text of its own, in its decoder. Knows nothing about masks or files.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Literal, final

from softprompt.data.records import Message, Record
from softprompt.data.thoughts import ThoughtFormat, thought_format
from softprompt.data.tokenizer import Tokenizer, bos_ids, render_chat
from softprompt.errors import DataError

__all__ = [
    "VIRTUAL",
    "Template",
    "Tokenizer",
    "answered_apart",
    "body",
    "bos_ids",
    "conversation_text",
    "fill",
    "head",
    "input_record",
    "prompt_text",
    "thoughts_of",
    "turns",
    "turns_record",
    "unused_fields",
]

# Stands in for the row's text when only the chat template's own text is wanted. Letters alone: a template may trim or
# escape anything else.
USER = "SOFTPROMPTUSERTEXT"
VIRTUAL = "SOFTPROMPTVIRTUALTOKENS"  # as a template's system turn: the virtual tokens are its words


@final
@dataclass(frozen=True)
class Template:
    """How a record becomes text.

    Attributes:
        kind: "text": `text` is the whole prompt; "chat": `text` is the user's message; "seq2seq": `text` is the whole
            prompt, and the answer is a text of its own (encoder–decoders).
        text: a format string over the record's fields, such as "Review: {text}\\nSentiment:"; `{{` and `}}`
            stand for braces. Empty (chat only): rows of kind "messages", which bring their own turns.
        system: the system turn (chat only) of conversations that bring none; empty: what the model's own chat template
            adds, stays. `VIRTUAL`: the virtual tokens stand in its place.
        chat_template: Jinja text of the chat template; empty: the tokenizer's own.
        thoughts: of a reasoning model. Empty: an answer follows the chat template's empty thought; "given": the model
            thinks first; "open": a thought that the generation prompt opens stays open, as in softprompt 0.1.
        system_from: "rows": each training row brought a system turn of its own, so every conversation needs one.
        system_turns: what a server does with other system turns; empty: keep them if the rows had turns, else refuse.

    Raises:
        DataError: an unknown kind, a field with more than a name, or no field at all.
    """

    kind: Literal["text", "chat", "seq2seq"]
    text: str = ""
    system: str = ""
    chat_template: str = ""
    thoughts: Literal["", "given", "open"] = ""
    system_from: Literal["", "rows"] = ""
    system_turns: Literal["", "keep", "ignore", "refuse"] = ""

    def __post_init__(self) -> None:
        if self.kind not in ("text", "chat", "seq2seq"):
            raise DataError("unknown kind of template", expected="text, chat or seq2seq", got=self.kind)
        if self.system and self.kind != "chat":
            raise DataError("a plain template has no system turn", hint="write it into the template's text")
        if not self.names and (self.text or self.kind != "chat"):
            raise DataError(
                "the template has no field, so every row would read the same",
                expected='for example "Review: {text}\\nSentiment:"',
                got=repr(self.text),
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The fields of the text, in order of first use."""
        return tuple(dict.fromkeys(name for _, name in _parse(self.text) if name is not None))

    def to_dict(self) -> dict[str, str]:
        """As JSON, for the card, without what is empty beyond kind, text and system."""
        return {name: value for name, value in asdict(self).items() if value or name in ("kind", "text", "system")}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Template:
        """From JSON.

        Raises:
            DataError: an unknown key, a value that is not a string, or what `Template` refuses.
        """
        known = [field.name for field in dataclass_fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise DataError("unknown key in a template", expected=", ".join(known), got=", ".join(unknown))
        for name, value in values.items():
            if not isinstance(value, str):
                raise DataError(f"template field {name!r} must be a string", got=type(value).__name__)
        kind = values.get("kind")
        thoughts, system_from = values.get("thoughts", ""), values.get("system_from", "")
        if kind not in ("text", "chat", "seq2seq"):
            raise DataError("unknown kind of template", expected="text, chat or seq2seq", got=kind)
        system_turns = values.get("system_turns", "")
        if system_turns not in ("", "keep", "ignore", "refuse"):
            raise DataError("unknown value in a template", got=f"system_turns {system_turns!r}")
        if thoughts not in ("", "given", "open") or system_from not in ("", "rows"):
            raise DataError("unknown value in a template", got=f"thoughts {thoughts!r}, system_from {system_from!r}")
        text, system = str(values.get("text", "")), str(values.get("system", ""))
        return cls(kind, text, system, str(values.get("chat_template", "")), thoughts, system_from, system_turns)


def answered_apart(template: Template) -> Template:
    """The template for an encoder–decoder, whose answer is a text of its own. Raises DataError for a chat template."""
    if template.kind == "chat":
        hint = "use a plain template (--no-chat --template '...')"
        raise DataError("an encoder-decoder reads a text and writes a text: it holds no conversations", hint=hint)
    return replace(template, kind="seq2seq")


def fill(template: Template, record: Record) -> str:
    """The template's text with the record's fields; for chat, the user's message.

    Raises:
        DataError: the record lacks a field.
    """
    for name in template.names:
        if name not in record.fields:
            near = difflib.get_close_matches(name, record.fields, n=1)
            raise DataError(
                f"the template asks for {{{name}}}, which the row does not have",
                where=record.where or None,
                expected=f"one of {', '.join(sorted(record.fields)) or '(no fields)'}",
                got=name,
                hint=f"did you mean {{{near[0]}}}?" if near else None,
            )
    return "".join(literal + (record.fields[name] if name else "") for literal, name in _parse(template.text))


def unused_fields(template: Template, records: Sequence[Record]) -> list[str]:
    """Fields of the rows that the template leaves out, so that the model never sees them; sorted.

    A field whose text the used ones hold in every row is there under another name: {prompt} is all of {instruction}.
    """
    names = {name for record in records for name in record.fields} - set(template.names)

    def is_seen(name: str, record: Record) -> bool:
        text = record.fields.get(name, "")
        return any(text in record.fields.get(used, "") for used in template.names)

    return sorted(name for name in names if not all(is_seen(name, record) for record in records))


def head(template: Template, tokenizer: Tokenizer) -> str:
    """The constant text before the varying text of a row; never the BOS, never whitespace at its end.

    For chat it is everything up to and into the user's turn. Rows of messages have none, or the system turn up to the
    end of the virtual tokens that stand in it.

    Raises:
        DataError: the chat template does not write the user's message exactly once.
    """
    if template.kind == "chat" and not template.text:
        return _up_to_virtual(template, tokenizer) if template.system == VIRTUAL else ""
    literal = _parse(template.text)[0][0]
    if template.kind != "chat":
        return literal.rstrip()
    text = prompt_text(template, turns(template, literal + USER), tokenizer)
    if text.count(USER) != 1:
        raise DataError(
            "the model's chat template does not write the user's message exactly once",
            got=f"{text.count(USER)} times",
            hint="use a plain template (--no-chat --template '...')",
        )
    return text[: text.index(USER)].rstrip()


def _up_to_virtual(template: Template, tokenizer: Tokenizer) -> str:
    text = prompt_text(template, turns(template, USER), tokenizer)
    if text.count(VIRTUAL) != 1:
        raise DataError(
            "the model's chat template writes no system turn that virtual tokens could stand in",
            got=f"its words {text.count(VIRTUAL)} times",
        )
    return text[: text.index(VIRTUAL) + len(VIRTUAL)]


def body(record: Record, template: Template, tokenizer: Tokenizer) -> str:
    """The prompt of one row after the head: `head + body` is the whole prompt.

    Rows of messages: every turn but the last assistant turn, up to where the assistant begins.

    Raises:
        DataError: the record lacks a field of the template, is of a kind that the template does not fit,
            or the chat template writes the opening differently for this row.
    """
    return body_after(head(template, tokenizer), record, template, tokenizer)


def body_after(
    opening: str, record: Record, template: Template, tokenizer: Tokenizer, thinking: bool | None = None
) -> str:
    """`body` with the head already known, for many rows; `thinking` as in `prompt_text`."""
    check_fit(record, template)
    if record.is_conversation:
        turns_before = record.messages[:-1] if record.target is not None else record.messages
        text = prompt_text(template, with_system(template, turns_before), tokenizer, thinking)
    else:
        text = fill(template, record)
        if template.kind == "chat":
            text = prompt_text(template, turns(template, text), tokenizer, thinking)
    if not text.startswith(opening):
        raise DataError(
            "the model's chat template writes this row with another opening than the other rows",
            where=record.where,
            expected=repr(opening[-80:]),
            got=repr(text[: len(opening)][-80:]),
            hint="use a plain template (--no-chat --template '...')",
        )
    return text[len(opening) :]


def thoughts_of(template: Template, tokenizer: Tokenizer) -> ThoughtFormat | None:
    """How the chat template writes thoughts; None if it knows none, or where they stay as they are."""
    if template.kind != "chat" or template.thoughts == "open":
        return None
    return thought_format(tokenizer, template.chat_template)


def prompt_text(
    template: Template, messages: Sequence[Message], tokenizer: Tokenizer, thinking: bool | None = None
) -> str:
    """A conversation up to where the assistant's words begin: its thought, or its answer after an empty thought.

    Args:
        thinking: whether the answer begins with a thought; None: as the template says.
    """
    thinking = template.thoughts == "given" if thinking is None else thinking
    chat_template = template.chat_template
    text = render_chat(messages, tokenizer, add_generation_prompt=True, thinking=thinking, chat_template=chat_template)
    written = None if thinking else thoughts_of(template, tokenizer)
    return text + written.empty if written is not None else text


def conversation_text(
    template: Template, messages: Sequence[Message], tokenizer: Tokenizer, thinking: bool = False
) -> str:
    """A conversation whose last turn is finished."""
    return render_chat(
        messages, tokenizer, add_generation_prompt=False, thinking=thinking, chat_template=template.chat_template
    )


def check_fit(record: Record, template: Template) -> None:
    """Refuse conversations under a template with text, and other rows under one without."""
    if record.is_conversation != (template.kind == "chat" and not template.text):
        what = "this template does not fit rows of messages" if template.text else "this template fits messages only"
        raise DataError(
            what,
            where=record.where,
            expected="rows of the kind that the template was made for",
            got=f"a row of kind {record.kind!r}",
        )


def check_system(record: Record, template: Template) -> None:
    """Refuse a conversation without a system turn if each training row brought one of its own."""
    if template.system_from != "rows" or any(message.role in ("system", "developer") for message in record.messages):
        return
    raise DataError(
        "this soft prompt was trained on conversations that each brought a system turn, and this one has none",
        where=record.where or None,
        expected='{"role": "system", "content": "..."} as the first message',
        hint="--system TEXT in generate and chat, or a system turn in the conversation",
    )


def with_system(template: Template, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The turns, opened by the template's system turn unless they bring one, which virtual tokens do not allow."""
    has_system = bool(messages) and messages[0].role in ("system", "developer")
    if has_system and template.system == VIRTUAL:
        what = "the conversation brings a system turn, and the soft prompt stands in its place"
        raise DataError(what, got=messages[0].content[:60], hint="leave the system turn out")
    if not template.system or has_system:
        return tuple(messages)
    return (Message("system", template.system), *messages)


def turns(template: Template, user: str) -> tuple[Message, ...]:
    """The conversation of one question."""
    return with_system(template, (Message("user", user),))


def _parse(text: str) -> list[tuple[str, str | None]]:
    """The template as pairs of literal text and the field after it (None at the end); never empty."""
    hint = "write a brace that is meant as a brace twice: {{ or }}"
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise DataError(f"the template is broken: {error}", got=repr(text), hint=hint) from error
    merged: list[tuple[str, str | None]] = []
    pending = ""
    for literal, name, spec, conversion in parts:
        pending += literal
        if name is None:  # the end, or an escaped brace
            continue
        if spec or conversion or not name.isidentifier():
            raise DataError(
                "a template field must be a plain name",
                expected="{text}",
                got="{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}",
                hint=hint,
            )
        merged.append((pending, name))
        pending = ""
    return [*merged, (pending, None)]


def input_record(fields: Mapping[str, str], where: str = "") -> Record:
    """A row without an answer, with these fields of a template."""
    return Record(fields, None, "completion", where=where)


def turns_record(messages: Sequence[Message], where: str = "") -> Record:
    """A conversation without an answer."""
    return Record({}, None, "messages", messages=tuple(messages), where=where)
