"""The text of an answer as it follows the prompt, and the token that ends it. Knows nothing about masks or files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from softprompt.data.records import Message, Record
from softprompt.data.template import USER, Template, conversation_text, thoughts_of, turns
from softprompt.data.thoughts import split_thought
from softprompt.data.tokenizer import Tokenizer, decode, encode, eos_id, is_special
from softprompt.errors import DataError

ANSWER = "SOFTPROMPTANSWERTEXT"  # stands in for the assistant's words


def target_text(target: str, template: Template) -> str:
    """The target as the model writes it: as `joined` to the body, or as a text of its own (encoder–decoders)."""
    return target if template.kind == "seq2seq" else joined(target, template)


def joined(target: str, template: Template) -> str:
    """The target as it follows the body in one text: after one space, unless there is whitespace."""
    apart = template.kind == "chat" or template.text[-1:].isspace() or target[:1].isspace()
    return target if apart else " " + target


def end_id(template: Template, tokenizer: Tokenizer) -> int:
    """The token that ends an answer, which the model must learn.

    Plain text: EOS. Chat: the control token that the chat template writes after the assistant's words.

    Raises:
        DataError: there is no such token, so the model would never learn to stop.
    """
    eos = eos_id(tokenizer)
    if template.kind == "chat":
        answered = (*turns(template, USER), Message("assistant", ANSWER))
        tail = conversation_text(template, answered, tokenizer).rpartition(ANSWER)[2]
        ids = encode(tail, tokenizer)
        if ids and is_special(ids[0], tokenizer):
            return ids[0]
        if eos is not None and eos in ids:
            return eos
        got = f"the chat template writes {tail!r} after the answer"
        hint = "mend the chat template (it must close the turn with a control token), or use --no-chat"
    else:
        if eos is not None:
            return eos
        got, hint = "no eos_token", "set tokenizer.eos_token, or use --chat if the model has a chat template"
    raise DataError(
        "no token ends an answer: the model would never learn to stop",
        expected="a control token after the answer",
        got=got,
        hint=hint,
    )


def end_texts(template: Template, tokenizer: Tokenizer) -> tuple[str, ...]:
    """How the end tokens of an answer are written: the template's, and the tokenizer's EOS.

    Raises DataError if the template has none.
    """
    ids = (end_id(template, tokenizer), eos_id(tokenizer))
    texts = [decode([token], tokenizer) for token in ids if token is not None and is_special(token, tokenizer)]
    return tuple(dict.fromkeys(text for text in texts if text))


def without_end(text: str, ends: Sequence[str]) -> str:
    """An answer without end tokens written at its end, as files for other trainers have them, and space there."""
    while end := next((end for end in ends if text.rstrip().endswith(end)), ""):
        text = text.rstrip().removesuffix(end).rstrip()
    return text


def without_written_ends(records: Sequence[Record], template: Template, tokenizer: Tokenizer) -> list[Record]:
    """The records, with targets and assistant's turns as `without_end` leaves them."""
    ends = end_texts(template, tokenizer)

    def turn(message: Message) -> Message:
        assistant = message.role == "assistant"
        return replace(message, content=without_end(message.content, ends)) if assistant else message

    return [
        replace(
            record,
            target=None if record.target is None else without_end(record.target, ends),
            messages=tuple(map(turn, record.messages)),
        )
        for record in records
    ]


def compared_part(template: Template, tokenizer: Tokenizer) -> Callable[[str], str]:
    """Returns the part of an answer that is compared with others: no written end token at its end, and no thought."""
    ends, written = end_texts(template, tokenizer), thoughts_of(template, tokenizer)

    def part(answer: str) -> str:
        answer = without_end(answer, ends)
        return answer if written is None else split_thought(answer, opened=written.is_opened)[1]

    return part
