"""Token ids of the parts of a row: its body, its target, the turns of a conversation.

Body and target are tokenized apart and joined as ids, so that training, ranking of labels and generation
see the same ids. Nothing is ever cut. Knows nothing about the shapes of rows, prefixes, tensors or batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

from softprompt.data.records import Record
from softprompt.data.targets import end_id, target_text
from softprompt.data.template import Template, body_after, check_fit, head, with_system
from softprompt.data.tokenizer import Tokenizer, decode, encode, render_chat
from softprompt.errors import DataError

__all__ = ["RowEncoder", "Span", "prompt_ids", "target_ids"]


class Span(NamedTuple):
    """Token ids that follow each other.

    Attributes:
        ids: token ids.
        learned: whether the loss is taken of them.
    """

    ids: list[int]
    learned: bool


@final
@dataclass(frozen=True)
class RowEncoder:
    """The parts of rows as token ids under one template, whose constant parts are rendered once."""

    template: Template
    tokenizer: Tokenizer

    @cached_property
    def opening(self) -> str:
        """The template's head, which is part of the prefix."""
        return head(self.template, self.tokenizer)

    @cached_property
    def end(self) -> int:
        """The token that ends an answer. Raises DataError if there is none."""
        return end_id(self.template, self.tokenizer)

    def body(self, record: Record) -> list[int]:
        """The ids of the body; there must be one at least, the first target token is predicted from it.

        Raises:
            DataError: the row does not fit the template, or its body has no tokens.
        """
        text = body_after(self.opening, record, self.template, self.tokenizer)
        ids = encode(text, self.tokenizer)
        if not ids:
            raise DataError("the row's prompt has no tokens", where=record.where, got=repr(text))
        return ids

    def target(self, target: str) -> list[int]:
        """The ids of an answer as they follow the body, without the end token. Raises DataError for no tokens."""
        ids = encode(target_text(target, self.template), self.tokenizer)
        if not ids:
            raise DataError("the target has no tokens", got=repr(target))
        return ids

    def conversation(self, record: Record) -> list[Span]:
        """A conversation as alternating given and learned spans, ending with a learned one.

        The chat template is rendered up to each assistant turn with the generation prompt, and up to its end.
        Each rendering must continue the one before; what the second adds is the assistant's turn.

        Raises:
            DataError: no text before the first learned turn, no learned turn at the end, or a chat template that
                rewrites earlier turns or does not close a turn with the end token.
        """
        check_fit(record, self.template)
        if record.target is None:
            raise DataError("the conversation does not end with the assistant's turn", where=record.where)
        messages = with_system(self.template, record.messages)
        context = record.context + len(messages) - len(record.messages)
        rendered, spans = self.opening, list[Span]()
        for i, message in enumerate(messages):
            if message.role != "assistant" or i < context:
                continue
            before = render_chat(messages[:i], self.tokenizer, add_generation_prompt=True)
            after = render_chat(messages[: i + 1], self.tokenizer, add_generation_prompt=False)
            if not before.startswith(rendered) or not after.startswith(before):
                raise _inconsistent(record, i, before if not before.startswith(rendered) else after)
            spans.append(Span(encode(before[len(rendered) :], self.tokenizer), False))
            words, tail = _split_turn(after[len(before) :], message.content, record)
            closing = encode(tail, self.tokenizer)
            if self.end not in closing:
                raise self._unclosed(record, i, tail)
            cut = closing.index(self.end) + 1
            spans.append(Span(encode(words, self.tokenizer) + closing[:cut], True))
            if i + 1 < len(messages):
                spans.append(Span(closing[cut:], False))
            rendered = after
        if not spans[0].ids:
            raise DataError("the conversation has no text before the assistant's turn", where=record.where)
        return spans

    def _unclosed(self, record: Record, turn: int, tail: str) -> DataError:
        """The chat template writes no end token after this turn."""
        return DataError(
            "the chat template does not close this turn: the model would never learn to stop",
            where=record.where,
            expected=f"{decode([self.end], self.tokenizer)!r} after turn {turn + 1}",
            got=repr(tail),
        )


def prompt_ids(record: Record, template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids of a row's body: the given part of the row that `tokenize` makes of it, without the target.

    Raises:
        DataError: the row does not fit the template, or its body has no tokens.
    """
    encoder = RowEncoder(template, tokenizer)
    if not record.is_conversation or record.target is None:
        return encoder.body(record)
    # The last span is the answer; earlier assistant turns belong to the prompt.
    return [token for span in encoder.conversation(record)[:-1] for token in span.ids]


def target_ids(target: str, template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids of an answer as they follow the body, without the end token.

    Raises:
        DataError: the target has no tokens.
    """
    return RowEncoder(template, tokenizer).target(target)


def _split_turn(turn: str, content: str, record: Record) -> tuple[str, str]:
    """An assistant's turn as its words and the text that the chat template writes after them."""
    for words in (content, content.strip()):  # some templates trim
        if (start := turn.find(words)) >= 0:
            stop = start + len(words)
            return turn[:stop], turn[stop:]
    raise DataError(
        "the chat template does not write the assistant's message as it is",
        where=record.where,
        expected=repr(content[:80]),
        got=repr(turn[:80]),
    )


def _inconsistent(record: Record, turn: int, got: str) -> DataError:
    """The chat template rewrites earlier turns, so there is no one text to learn from."""
    return DataError(
        f"the chat template writes the turns before turn {turn + 1} differently once that turn is there",
        where=record.where,
        expected="each rendering to continue the one before",
        got=f"...{got[-120:]!r}",
        hint="write the conversation as prompt and completion (message lists) to learn the last turn only",
    )
