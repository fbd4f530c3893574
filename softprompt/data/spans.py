"""Token ids of the parts of a row: its body, its target, the turns of a conversation.

Body and target are tokenized apart and joined as ids, so that training, ranking of labels and generation
see the same ids. Nothing is ever cut, but end tokens that an answer ends with already are learned once. Knows nothing
about the shapes of rows, prefixes, tensors or batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, final

from softprompt.data.records import Record
from softprompt.data.targets import end_id, end_texts, target_text, without_end
from softprompt.data.template import Template, body_after, check_fit, check_system, head, thoughts_of
from softprompt.data.thoughts import ThoughtFormat
from softprompt.data.tokenizer import Tokenizer, decode, encode, encode_answer
from softprompt.data.turns import TurnText, answer_parts, learned_turns, tidied
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

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """How end tokens are written in a text."""
        return end_texts(self.template, self.tokenizer)

    @cached_property
    def thoughts(self) -> ThoughtFormat | None:
        """How the chat template writes thoughts; None if it knows none."""
        return thoughts_of(self.template, self.tokenizer)

    def body(self, record: Record, *, thinking: bool | None = None) -> list[int]:
        """The ids of the body; there must be one at least, the first target token is predicted from it.

        Args:
            thinking: whether a thought follows; None: whether the target begins with one.

        Raises:
            DataError: the row does not fit the template, or its body has no tokens.
        """
        if thinking is None:
            thinking = answer_parts(record.target or "-", self.thoughts, record.where)[0] is not None
        turns = [tidied(message, self.thoughts, self.ends, record.where) for message in record.messages]
        record = replace(record, messages=tuple(turns))
        text = body_after(self.opening, record, self.template, self.tokenizer, thinking)
        ids = encode(text, self.tokenizer)
        if not ids:
            raise DataError("the row's prompt has no tokens", where=record.where, got=repr(text))
        return ids

    def whole(self, record: Record) -> list[int]:
        """The ids of a text that is learned whole, without end tokens written at its end; at least one."""
        ids = self.body(record)
        while len(ids) > 1 and ids[-1] == self.end:
            ids.pop()
        return ids

    def target(self, target: str) -> list[int]:
        """The ids of an answer as they follow the body, without the end token. Raises DataError for no tokens."""
        text = without_end(target, self.ends)
        if self.thoughts is not None:
            text = self.thoughts.text(*answer_parts(text, self.thoughts, ""))
        split = encode_answer if self.template.kind == "seq2seq" else encode
        ids = split(target_text(text, self.template), self.tokenizer)
        if not ids:
            raise DataError("the target has no tokens", got=repr(target))
        return ids

    def conversation(self, record: Record) -> list[list[Span]]:
        """A conversation as one or several rows of given and learned spans in turn; a learned one is last.

        Every turn is rendered as it is generated. A turn that continues the text of the turns before it is in one row
        with them; one before which the chat template rewrites earlier turns begins a row of its own.

        Raises:
            DataError: no text before the first learned turn, no learned turn at the end, or a chat template that
                changes the assistant's words or does not close a turn with the end token.
        """
        check_fit(record, self.template)
        if record.target is None:
            raise DataError("the conversation does not end with the assistant's turn", where=record.where)
        rows: list[list[TurnText]] = []
        for turn in learned_turns(record, self.template, self.tokenizer, self.ends):
            if rows and turn.given.startswith(rows[-1][-1].whole):
                rows[-1].append(turn)
            else:
                rows.append([turn])
        return [self._spans(record, turns) for turns in rows]

    def prompt(self, record: Record) -> list[int]:
        """The ids of a row's given text when an answer is generated, with a thought if the template says so.

        Raises:
            DataError: the row does not fit the template, lacks a system turn, or its body has no tokens.
        """
        thinking = self.template.thoughts == "given"
        if record.is_conversation:
            check_system(record, self.template)
        thinks = answer_parts(record.target or "-", self.thoughts, record.where)[0] is not None
        if not record.is_conversation or record.target is None or thinks != thinking:
            return self.body(record, thinking=thinking)
        # The last span is the answer; earlier assistant turns belong to the prompt.
        return [token for span in self.conversation(record)[-1][:-1] for token in span.ids]

    def _spans(self, record: Record, turns: list[TurnText]) -> list[Span]:
        """The spans of turns of which each continues the one before."""
        if not turns[0].given.startswith(self.opening):
            raise DataError("the chat template writes this conversation with another opening", where=record.where)
        written, spans = self.opening, list[Span]()
        for turn in turns:
            spans.append(Span(encode(turn.given[len(written) :], self.tokenizer), False))
            closing = encode(turn.end, self.tokenizer)
            if self.end not in closing:
                raise self._unclosed(record, turn)
            cut = closing.index(self.end) + 1
            spans.append(Span(encode(turn.words, self.tokenizer) + closing[:cut], True))
            if turn is not turns[-1]:
                spans.append(Span(closing[cut:], False))
            written = turn.whole
        if not spans[0].ids:
            raise DataError("the conversation has no text before the assistant's turn", where=record.where)
        return spans

    def _unclosed(self, record: Record, turn: TurnText) -> DataError:
        """The chat template writes no end token after this turn."""
        return DataError(
            "the chat template does not close this turn: the model would never learn to stop",
            where=record.where,
            expected=f"{decode([self.end], self.tokenizer)!r} after {turn.words[-60:]!r}",
            got=repr(turn.end),
        )


def prompt_ids(record: Record, template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids of a row's body: the given part of the row that `tokenize` makes of it, without the target.

    Raises:
        DataError: the row does not fit the template, or its body has no tokens.
    """
    return RowEncoder(template, tokenizer).prompt(record)


def target_ids(target: str, template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids of an answer as they follow the body, without the end token.

    Raises:
        DataError: the target has no tokens.
    """
    return RowEncoder(template, tokenizer).target(target)
