"""Are all tokens of rows in the model's table of embeddings? A tokenizer may know more tokens than its model."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.data.tokenize import Example
from softprompt.data.tokenizer import Tokenizer, decode
from softprompt.errors import DataError

__all__ = ["check_vocabulary", "strange_rows"]

_NAMED = 5  # rows in the message


def strange_rows(examples: Sequence[Example], vocabulary: int) -> dict[str, list[int]]:
    """The rows that hold tokens beyond the table, with those tokens' ids.

    Args:
        vocabulary: rows of the model's embedding table.
    """
    found = {example.where: sorted({token for token in example.ids if token >= vocabulary}) for example in examples}
    return {where: tokens for where, tokens in found.items() if tokens}


def check_vocabulary(examples: Sequence[Example], tokenizer: Tokenizer, vocabulary: int) -> None:
    """Raise DataError, naming the rows, if some hold tokens that the model has no embedding of."""
    rows = strange_rows(examples, vocabulary)
    if not rows:
        return
    where, tokens = next(iter(rows.items()))
    others = ", ".join(list(rows)[1:_NAMED])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    raise DataError(
        f"{len(rows)} of {len(examples)} rows hold tokens that the model has no embedding of",
        where=where,
        expected=f"token ids below {vocabulary}, the rows of the model's embedding table",
        got=f"{decode(tokens[:1], tokenizer)!r} (id {tokens[0]})" + (f"; also in {others}{more}" if others else ""),
        hint="take these tokens out of the rows, or give the model that the tokenizer was extended for",
    )
