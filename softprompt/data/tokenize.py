"""Records to token ids with a loss mask: what the model reads behind the prefix, and what it learns.

    completion, label   body (given) + target (learned) + end (learned)
    messages            given turns, and for each assistant turn: words (learned) + end (learned)
    text                everything learned but the first token, then the end (learned)

Body and target are tokenised apart and joined as ids, so that training, ranking of labels and generation
see the same ids. Nothing is ever cut. Knows nothing about prefixes, tensors or batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

from softprompt.data.records import Record
from softprompt.data.soft_labels import SoftLabels
from softprompt.data.targets import end_id, target_text
from softprompt.data.template import Template, body_behind, check_fit, head, with_system
from softprompt.data.tokenizer import Tokenizer, decode, encode, render_chat
from softprompt.errors import DataError

__all__ = ["Example", "prompt_ids", "target_ids", "tokenize"]


@final
@dataclass(frozen=True)
class Example:
    """One row as it stands behind the prefix.

    Attributes:
        ids: T token ids; no BOS and no head, those belong to the prefix.
        mask: T bools, True where the token is learned; never the first.
        where: `file:line`.
        task: number of the task it belongs to, where several are learned together.
        unseen: the virtual tokens [first, last) that this row may not look at: a demonstration made of it.
        lesson: what the learned tokens are judged by instead of themselves.
    """

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    where: str
    task: int = 0
    masked_span: tuple[int, int] = (0, 0)
    lesson: SoftLabels | None = None


def tokenize(
    records: Sequence[Record],
    template: Template,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    on_long: Literal["error", "drop"] = "error",
) -> list[Example]:
    """Every row as ids and mask, in order.

    Args:
        max_length: the most tokens a row may have behind the prefix, end token included.
        on_long: "error", or "drop" to leave longer rows out; `len(records) - len(result)` were dropped.

    Raises:
        DataError: a row has no target, no text or no learned token, is too long, or does not fit the
            template; or no row is left.
    """
    opening, end = head(template, tokenizer), end_id(template, tokenizer)
    examples = [_example(record, opening, end, template, tokenizer) for record in records]
    long = [example for example in examples if len(example.ids) > max_length]
    if long and on_long == "error":
        longest = max(len(example.ids) for example in long)
        raise DataError(
            f"{len(long)} of {len(examples)} rows are too long, the longest has {longest} tokens",
            where=long[0].where,
            expected=f"at most {max_length} tokens behind the prefix",
            got=f"{len(long[0].ids)} tokens in this row",
            hint=f"--max-length {longest} to keep them all, or --drop-long to leave them out",
        )
    kept = [example for example in examples if len(example.ids) <= max_length]
    if not kept:
        raise DataError(
            "no row is left" if examples else "there are no rows",
            expected=f"rows of at most {max_length} tokens behind the prefix",
            hint="--max-length" if examples else None,
        )
    return kept


def prompt_ids(record: Record, template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids of a row's body: the given part of what `tokenise` makes of it, without the target.

    Raises:
        DataError: the row does not fit the template, or its body has no tokens.
    """
    if record.kind == "messages" and record.target is not None:
        ids, learned = _joined(_message_pieces(record, template, tokenizer))
        if learned[0]:
            raise _nothing_in_front(record)
        # The last learned run is the answer; earlier assistant turns belong to the prompt.
        last = len(learned) - learned[::-1].index(False)
        return ids[:last]
    return _body_ids(record, head(template, tokenizer), template, tokenizer)


def target_ids(target: str, template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids of an answer as they follow the body, without the end token.

    Raises:
        DataError: the target has no tokens.
    """
    ids = encode(target_text(target, template), tokenizer)
    if not ids:
        raise DataError("the target has no tokens", got=repr(target))
    return ids


def _example(record: Record, opening: str, end: int, template: Template, tokenizer: Tokenizer) -> Example:
    """One row as ids and mask."""
    if record.kind == "messages":
        ids, mask = _joined(_message_pieces(record, template, tokenizer))
        if mask[0]:
            raise DataError("the conversation has no text in front of the assistant's turn", where=record.where)
    elif record.kind == "text":
        if template.kind == "chat":
            raise DataError(
                "rows of text alone are learned whole, a chat template would be learned with them",
                where=record.where,
                expected='rows with an answer, such as {"text": ..., "label": ...}',
                hint="--no-chat, or add the answers",
            )
        if template.kind == "seq2seq":
            raise DataError(
                "an encoder-decoder learns to answer a text, and rows of text alone have no answers",
                where=record.where,
                expected='rows with an answer, such as {"text": ..., "label": ...}',
            )
        ids = [*_body_ids(record, opening, template, tokenizer), end]
        mask = [False] + [True] * (len(ids) - 1)
    else:
        if record.target is None:
            raise DataError("the row has no target to learn", where=record.where)
        given = _body_ids(record, opening, template, tokenizer)
        learned = [*target_ids(record.target, template, tokenizer), end]
        ids, mask = given + learned, [False] * len(given) + [True] * len(learned)
    return Example(tuple(ids), tuple(mask), record.where)


def _body_ids(record: Record, opening: str, template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids of the body; there must be one at least, the first target token is predicted from it."""
    text = body_behind(opening, record, template, tokenizer)
    ids = encode(text, tokenizer)
    if not ids:
        raise DataError("the row's prompt has no tokens", where=record.where, got=repr(text))
    return ids


def _joined(pieces: Iterator[tuple[list[int], bool]]) -> tuple[list[int], list[bool]]:
    """Pieces of (ids, learned) as one row."""
    ids: list[int] = []
    mask: list[bool] = []
    for piece, learned in pieces:
        ids += piece
        mask += [learned] * len(piece)
    return ids, mask


def _message_pieces(record: Record, template: Template, tokenizer: Tokenizer) -> Iterator[tuple[list[int], bool]]:
    """A conversation as alternating given and learned pieces, ending with a learned one.

    The chat template is rendered up to each assistant turn with the generation prompt, and up to its end.
    Each rendering must continue the one before; what comes on top in the second is the assistant's turn.
    """
    check_fit(record, template)
    if record.target is None:
        raise DataError("the conversation does not end with the assistant's turn", where=record.where)
    messages = with_system(template, record.messages)
    context = record.context + len(messages) - len(record.messages)
    end, done = end_id(template, tokenizer), head(template, tokenizer)
    for i, message in enumerate(messages):
        if message.role != "assistant" or i < context:
            continue
        before = render_chat(messages[:i], tokenizer, add_generation_prompt=True)
        after = render_chat(messages[: i + 1], tokenizer, add_generation_prompt=False)
        if not before.startswith(done) or not after.startswith(before):
            raise _inconsistent(record, i, before if not before.startswith(done) else after)
        yield encode(before[len(done) :], tokenizer), False
        words, tail = _split_turn(after[len(before) :], message.content, record)
        closing = encode(tail, tokenizer)
        if end not in closing:
            raise DataError(
                "the chat template does not close this turn: the model would never learn to stop",
                where=record.where,
                expected=f"{decode([end], tokenizer)!r} behind turn {i + 1}",
                got=repr(tail),
            )
        cut = closing.index(end) + 1
        yield encode(words, tokenizer) + closing[:cut], True
        if i + 1 < len(messages):
            yield closing[cut:], False
        done = after


def _split_turn(turn: str, content: str, record: Record) -> tuple[str, str]:
    """An assistant's turn as its words and what the chat template writes behind them."""
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


def _nothing_in_front(record: Record) -> DataError:
    return DataError("the conversation has no text in front of the assistant's turn", where=record.where)
