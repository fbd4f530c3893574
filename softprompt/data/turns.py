"""The learned turns of a conversation as its chat template writes them: what is given, the words, the end.

A chat template of a reasoning model may write an answer otherwise once further turns follow: without its thought, or
without the empty thought in front. Each turn is therefore rendered as it is generated, after the turns before it.
Knows nothing about token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from softprompt.data.records import Message, Record
from softprompt.data.targets import compared_part, end_texts, without_end
from softprompt.data.template import Template, conversation_text, prompt_text, thoughts_of, with_system
from softprompt.data.thoughts import ThoughtFormat, split_thought, unclosed_thought
from softprompt.data.tokenizer import Tokenizer
from softprompt.errors import DataError

__all__ = ["TurnText", "answer_parts", "compared_references", "learned_turns", "tidied"]


class TurnText(NamedTuple):
    """One turn of the assistant.

    Attributes:
        given: the conversation up to where the model's words begin.
        words: what the model writes: its thought, if it has one, and its answer.
        end: what the chat template writes after the words.
        thinks: whether the words begin with a thought.
    """

    given: str
    words: str
    end: str
    thinks: bool

    @property
    def whole(self) -> str:
        """The conversation with this turn."""
        return self.given + self.words + self.end


def answer_parts(text: str, written: ThoughtFormat | None, where: str) -> tuple[str | None, str]:
    """An answer's thought (None without one) and the answer proper. Raises DataError for a thought alone."""
    if written is None:
        return None, text
    thought, answer = split_thought(text, opened=written.is_opened)
    if tag := unclosed_thought(text):
        what = f"the answer opens a thought ({tag}) and does not close it, so it would teach to think without an end"
        raise DataError(what, where=where, expected=f"{written.tags[1]} and then the answer", got=repr(text[:60]))
    if not answer.strip():
        raise DataError("the answer is a thought and nothing else", where=where, got=repr(text[:60]))
    return thought, answer


def learned_turns(record: Record, template: Template, tokenizer: Tokenizer, ends: Sequence[str]) -> list[TurnText]:
    """Every learned turn of a conversation, rendered after the turns before it.

    Args:
        ends: texts of end tokens, which are left out where an answer ends with one.

    Raises:
        DataError: the chat template refuses the conversation, changes the assistant's words, or does not begin its turn
            with the generation prompt.
    """
    written = thoughts_of(template, tokenizer)
    own = [tidied(message, written, ends, record.where) for message in record.messages]
    messages = with_system(template, own)
    added = len(messages) - len(own)
    return [
        _calling_turn(record, messages[: added + i + 1], template, tokenizer, ends)
        if message.calls
        else _turn(record, messages[: added + i + 1], template, tokenizer, written)
        for i, message in enumerate(own)
        if message.role == "assistant" and i >= record.context
    ]


def tidied(message: Message, written: ThoughtFormat | None, ends: Sequence[str], where: str) -> Message:
    """A turn whose end token is left out, and whose thought is written as the chat template reads it."""
    if message.role != "assistant":
        return message
    content = without_end(message.content, ends)
    if written is not None and message.calls:
        content = written.content(*split_thought(content, opened=written.is_opened))
    elif written is not None:
        content = written.content(*answer_parts(content, written, where))
    return replace(message, content=content)


def _turn(
    record: Record,
    messages: Sequence[Message],
    template: Template,
    tokenizer: Tokenizer,
    written: ThoughtFormat | None,
) -> TurnText:
    """The last of these messages."""
    thought, answer = answer_parts(messages[-1].content, written, record.where)
    thinks = thought is not None
    given = prompt_text(template, messages[:-1], tokenizer, thinks)
    whole = conversation_text(template, messages, tokenizer, thinks)
    if whole.startswith(given) and (place := _place(turn := whole[len(given) :], thought, answer)):
        return TurnText(given, turn[: place[1]], turn[place[1] :], thinks)
    opening = given if written is None else given.removesuffix(written.before_words(thinks))
    if not whole.startswith(opening):
        raise _inconsistent(record, len(messages), whole)
    turn = whole[len(opening) :]
    if written is None or (place := _place(turn, None, answer)) is None:
        raise _changed(record, answer, turn)
    # The chat template leaves the thought out, or the generation prompt's empty one: written as the model was trained.
    return TurnText(given, written.text(thought, turn[place[0] : place[1]]), turn[place[1] :], thinks)


def _calling_turn(
    record: Record, messages: Sequence[Message], template: Template, tokenizer: Tokenizer, ends: Sequence[str]
) -> TurnText:
    """The last of these messages, which calls functions: all that the chat template writes up to the end token."""
    written = thoughts_of(template, tokenizer)
    content = messages[-1].content
    thought = split_thought(content, opened=written.is_opened)[0] if written is not None else None
    given = prompt_text(template, messages[:-1], tokenizer, thought is not None)
    whole = conversation_text(template, messages, tokenizer, thought is not None)
    opening = given
    if written is not None and not whole.startswith(given):
        opening = given.removesuffix(written.before_words(thought is not None))
    if not whole.startswith(opening):
        raise _inconsistent(record, len(messages), whole)
    turn = whole[len(opening) :]
    stop = max((turn.rfind(end) for end in ends), default=-1)
    if stop < 0:
        raise DataError(
            "the chat template does not close a turn with tool calls: the model would never learn to stop",
            where=record.where,
            expected=" or ".join(ends),
            got=repr(turn[-80:]),
        )
    words = turn[:stop]
    if opening != given and written is not None:  # the chat template leaves the thought out here
        words = written.text(thought, words)
    return TurnText(given, words, turn[stop:], thought is not None)


def compared_references(records: Sequence[Record], template: Template, tokenizer: Tokenizer) -> list[Record]:
    """The records, with the part of their right answers that is compared; of tool calls as the model writes them."""
    part, ends = compared_part(template, tokenizer), end_texts(template, tokenizer)

    def references(record: Record) -> tuple[str, ...]:
        if record.target is None or not record.messages or not record.messages[-1].calls:
            return record.references
        return (learned_turns(record, template, tokenizer, ends)[-1].words, *record.references[1:])

    return [replace(record, references=tuple(map(part, references(record)))) for record in records]


def _place(turn: str, thought: str | None, answer: str) -> tuple[int, int] | None:
    """Where the answer begins and ends in a rendered turn, after its thought; None if one of them is not there."""
    start = 0
    if thought is not None:
        start = turn.find(thought) + len(thought)
        if start < len(thought):
            return None
    for words in (answer, answer.strip()):  # some templates trim
        if (at := turn.find(words, start)) >= 0:
            return at, at + len(words)
    return None


def _changed(record: Record, answer: str, turn: str) -> DataError:
    return DataError(
        "the chat template does not write the assistant's message as it is",
        where=record.where,
        expected=repr(answer[:80]),
        got=repr(turn[:80]),
    )


def _inconsistent(record: Record, turn: int, got: str) -> DataError:
    """The generation prompt is not the beginning of the assistant's turn, so there is no one text to learn from."""
    return DataError(
        f"the chat template writes the turns before turn {turn} differently once that turn is there",
        where=record.where,
        expected="the generation prompt at the beginning of the assistant's turn",
        got=f"...{got[-120:]!r}",
        hint="mend the chat template, or write the rows as prompt and completion with --no-chat",
    )
