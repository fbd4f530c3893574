"""Records to token ids with a loss mask: the tokens after the prefix, and which of them are learned.

Which tokens those are is decided by the shape of the row, see `row_shapes`. Nothing is ever cut. Knows nothing about
prefixes, tensors or batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, final

from softprompt.data.records import Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.soft_labels import SoftLabels
from softprompt.data.spans import RowEncoder
from softprompt.data.template import Template
from softprompt.data.tokenizer import Tokenizer, decode
from softprompt.errors import DataError

__all__ = ["Example", "encode_record", "encode_rows", "learned_runs", "tokenize", "within"]


@final
@dataclass(frozen=True)
class Example:
    """One training row as token ids, without its prefix.

    Attributes:
        ids: T token ids; no BOS and no head, those belong to the prefix.
        mask: T bools, True where the token is learned; never the first.
        where: `file:line`.
        task: number of the task it belongs to, where several are learned together.
        masked_span: the virtual tokens [first, last) that this row may not attend to: a demonstration made of it.
        lesson: a teacher's token probabilities, which replace the learned tokens as the target of the loss.
        rejected: of a preference, the same row with the rejected answer; see `objective_rows`.
        record: of a row whose answers are generated and rewarded, the row as it was read.
    """

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    where: str
    task: int = 0
    masked_span: tuple[int, int] = (0, 0)
    lesson: SoftLabels | None = None
    rejected: Example | None = None
    record: Record | None = None

    @property
    def longest(self) -> int:
        """Tokens of the row, of a preference with the longer one of its answers."""
        return max(len(self.ids), len(self.rejected.ids) if self.rejected is not None else 0)


def tokenize(
    records: Sequence[Record],
    template: Template,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    on_long: Literal["error", "drop"] = "error",
    context: int | None = None,
) -> list[Example]:
    """Every row as ids and mask, in order. A conversation is several rows where its chat template rewrites turns.

    Args:
        max_length: the most tokens a row may have after the prefix, end token included.
        on_long: "error", or "drop" to leave longer rows out.
        context: of the model in tokens, if known; the hint then never names a length beyond it.

    Raises:
        DataError: a row has no target, no text or no learned token, is too long, or does not fit the
            template; or no row is left.
    """
    return within(encode_rows(records, template, tokenizer), max_length, on_long, context)


def encode_rows(records: Sequence[Record], template: Template, tokenizer: Tokenizer) -> list[Example]:
    """`tokenize` for rows of any length."""
    encoder = RowEncoder(template, tokenizer)
    return [example for record in records for example in encode_record(record, encoder)]


def within(
    examples: Sequence[Example], max_length: int, on_long: Literal["error", "drop"], context: int | None = None
) -> list[Example]:
    """The rows of at most this many tokens, as in `tokenize`.

    Raises DataError for longer ones (unless they are dropped), or if none is left.
    """
    long = [example for example in examples if example.longest > max_length]
    if long and on_long == "error":
        longest = max(example.longest for example in long)
        raise DataError(
            f"{len(long)} of {len(examples)} rows are too long, the longest has {longest} tokens",
            where=long[0].where,
            expected=f"at most {max_length} tokens after the prefix",
            got=f"{long[0].longest} tokens in this row",
            hint="--drop-long leaves them out"
            if context is not None and longest > context
            else f"--max-length {longest} to keep them all, or --drop-long to leave them out",
        )
    kept = [example for example in examples if example.longest <= max_length]
    if not kept:
        raise DataError(
            "no row is left" if examples else "there are no rows",
            expected=f"rows of at most {max_length} tokens after the prefix",
            hint="--max-length" if examples else None,
        )
    return kept


def learned_runs(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool, int]]:
    """The row as text in runs of tokens that are all learned or all not: text, whether learned, number of tokens."""
    runs: list[tuple[str, bool, int]] = []
    before, end = "", 0
    for learned, group in groupby(example.mask):
        start, end = end, end + len(list(group))
        text = decode(example.ids[:end], tokenizer)
        # Decoded alone, a run of a SentencePiece tokenizer would lose the space that it begins with.
        own = text[len(before) :] if text.startswith(before) else decode(example.ids[start:end], tokenizer)
        runs.append((own, learned, end - start))
        before = text
    return runs


def encode_record(record: Record, encoder: RowEncoder) -> list[Example]:
    """One record as ids and mask; its turns apart where they cannot be one text."""
    examples: list[Example] = []
    for spans in shape_of(record).rows(record, encoder):
        ids = [token for span in spans for token in span.ids]
        mask = [span.learned for span in spans for _ in span.ids]
        examples.append(Example(tuple(ids), tuple(mask), record.where))
    return examples
