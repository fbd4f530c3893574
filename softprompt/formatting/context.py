"""Checks before decoding: does every row fit in the model's context, and which tokens end an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from softprompt.data.records import Record
from softprompt.data.targets import end_id
from softprompt.data.template import Template
from softprompt.data.vocabulary import check_vocabulary
from softprompt.errors import DataError
from softprompt.models.frozen_lm import FrozenLM


def end_ids(lm: FrozenLM, template: Template) -> list[int]:
    """Every token that ends an answer: the template's own, and those of the model's generation config."""
    return sorted({end_id(template, lm.tokenizer), *lm.end_ids})


def check_context(lm: FrozenLM, rows: Iterable[tuple[str, int, int]], hint: str) -> None:
    """Refuse rows that are too long before time is spent on any.

    Args:
        rows: for each row where it is, the number of its tokens, and the number of tokens around it (prefix, answer).

    Raises DataError naming the longest row if it does not fit in the model's context.
    """
    longest = max(rows, key=lambda row: row[1] + row[2])
    if longest[1] + longest[2] > lm.geometry.max_positions:
        raise DataError(
            "the longest row does not fit in the model's context with the prompt and the answer around it",
            where=longest[0],
            expected=f"together <= {lm.geometry.max_positions} tokens",
            got=f"{longest[1]} + {longest[2]}",
            hint=hint,
        )


def check_records(lm: FrozenLM, records: Sequence[Record], bodies: Sequence[Sequence[int]], around: int) -> None:
    """`check_context` for records whose texts are these token ids, with `around` tokens around each.

    Raises DataError, too, for tokens that the model has no embedding of.
    """
    known = [(record.where, body) for record, body in zip(records, bodies, strict=True)]
    check_vocabulary(known, lm.tokenizer, lm.geometry.vocab)
    rows = [(record.where, len(body), around) for record, body in zip(records, bodies, strict=True)]
    check_context(lm, rows, "leave the row out, ask for fewer new tokens, or give the text prompt fewer --shots")
