"""Records as token ids for objectives that learn more than given answers: pairs of answers, and prompts alone.

    pairs = encode_pairs(load_rows("pairs.jsonl", options=ReadOptions(pairs=True)), template, tokenizer)
    prompts = encode_prompts(load_rows("prompts.jsonl", options=ReadOptions(prompts=True)), template, tokenizer)

Knows nothing about losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from softprompt.data.records import Record
from softprompt.data.spans import RowEncoder
from softprompt.data.template import Template
from softprompt.data.tokenize import Example, encode_record
from softprompt.data.tokenizer import Tokenizer
from softprompt.errors import DataError

__all__ = ["encode_pairs", "encode_prompts", "same_answers"]

_TURNS = "turns that both begin with, then an answer of each"
_PAIR = '{"prompt": "Name a color.", "chosen": "Blue", "rejected": "Dog"}'


def encode_pairs(records: Sequence[Record], template: Template, tokenizer: Tokenizer) -> list[Example]:
    """Each preference as its chosen answer, which carries the rejected one; the answers are what is learned.

    Of conversations the turns that both begin with are the prompt, so no assistant turn among them is learned.

    Raises:
        DataError: a record without a rejected answer, an answer that begins with the other one whole, or one that is
            not a single text under this chat template.
    """
    encoder = RowEncoder(template, tokenizer)
    return [_pair(record, encoder) for record in records]


def encode_prompts(records: Sequence[Record], template: Template, tokenizer: Tokenizer) -> list[Example]:
    """Each record as the token ids in front of its answer, of which none is learned.

    Raises:
        DataError: a row does not fit the template, or its prompt has no tokens.
    """
    encoder = RowEncoder(template, tokenizer)
    rows: list[Example] = []
    for record in records:
        ids = tuple(encoder.prompt(record))
        rows.append(Example(ids, (False,) * len(ids), record.where, record=record))
    return rows


def same_answers(examples: Sequence[Example]) -> int:
    """The number of pairs whose answers have the same tokens: no preference can be learned from them."""
    return sum(row.rejected is not None and row.ids == row.rejected.ids for row in examples)


def _pair(record: Record, encoder: RowEncoder) -> Example:
    if record.rejected is None:
        got = f"a row of {record.shape}" if record.shape else "a row without one"
        raise DataError("the row has no rejected answer", where=record.where, expected=_PAIR, got=got)
    chosen, rejected = _apart(record, record.rejected)
    return replace(_single(chosen, encoder), rejected=_single(rejected, encoder))


def _apart(chosen: Record, rejected: Record) -> tuple[Record, Record]:
    """Both conversations with the number of turns that they share as what is not learned; other records as they are."""
    if not chosen.is_conversation or chosen.context:
        return chosen, rejected
    turns = zip(chosen.messages, rejected.messages, strict=False)
    shared = next((i for i, (one, other) in enumerate(turns) if one != other), None)
    if shared is None and len(chosen.messages) == len(rejected.messages):  # the same answers
        shared = len(chosen.messages) - 1
    if shared is None:
        what = "one conversation begins with the other one whole, so there is no answer to compare it with"
        raise DataError(what, where=chosen.where, expected=_TURNS)
    if not shared or "assistant" not in (chosen.messages[shared].role, rejected.messages[shared].role):
        got = f"turn {shared + 1} is the first that differs"
        raise DataError(
            "the conversations differ before the assistant's turn", where=chosen.where, expected=_TURNS, got=got
        )
    return replace(chosen, context=shared), replace(rejected, context=shared)


def _single(record: Record, encoder: RowEncoder) -> Example:
    """The row as one text."""
    rows = encode_record(record, encoder)
    if len(rows) != 1:
        raise DataError(
            "the chat template rewrites earlier turns, so this answer of several turns is no single text to compare",
            where=record.where,
            expected="an answer of one turn",
            got=f"{len(rows)} texts",
        )
    return rows[0]
