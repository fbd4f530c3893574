"""Are all tokens of rows in the model's table of embeddings? A tokenizer may know more tokens than its model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from softprompt.data.tokenizer import Tokenizer, decode
from softprompt.errors import DataError

__all__ = ["check_vocabulary"]

_NAMED = 5  # rows in the message


def check_vocabulary(rows: Iterable[tuple[str, Sequence[int]]], tokenizer: Tokenizer, vocabulary: int) -> None:
    """Raise DataError, naming the rows, if some hold tokens that the model has no embedding of.

    Args:
        rows: place and token ids of each.
        vocabulary: rows of the model's embedding table.
    """
    known = [(where, sorted({token for token in ids if token >= vocabulary})) for where, ids in rows]
    strange = [(where, tokens) for where, tokens in known if tokens]
    if not strange:
        return
    where, tokens = strange[0]
    others = ", ".join(place for place, _ in strange[1:_NAMED])
    more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
    raise DataError(
        f"{len(strange)} of {len(known)} rows hold tokens that the model has no embedding of",
        where=where,
        expected=f"token ids below {vocabulary}, the rows of the model's embedding table",
        got=f"{decode(tokens[:1], tokenizer)!r} (id {tokens[0]})" + (f"; also in {others}{more}" if others else ""),
        hint="take these tokens out of the rows, or give the model that the tokenizer was extended for",
    )
