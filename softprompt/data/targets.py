"""The text of an answer as it follows the prompt, and the token that ends it. Knows nothing about masks or files."""

from __future__ import annotations

from softprompt.data.records import Message
from softprompt.data.template import USER, Template, turns
from softprompt.data.tokenizer import Tokenizer, encode, eos_id, is_special, render_chat
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
        tail = render_chat(answered, tokenizer, add_generation_prompt=False).rpartition(ANSWER)[2]
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
