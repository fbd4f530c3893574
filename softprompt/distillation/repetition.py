"""Rows in which the model repeats its text: a query for every token of the text, with nothing to generate.

They need no study and cover every detail once, so the start of a document's soft prompt is fitted to them (Kim et al.:
KVzip. 2025. https://arxiv.org/abs/2505.23416; Zweiger et al.: Attention matching. 2026.
https://arxiv.org/abs/2602.16284).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from softprompt.data.spans import target_ids
from softprompt.data.targets import end_id
from softprompt.data.template import Template
from softprompt.data.tokenizer import Tokenizer
from softprompt.distillation.chunking import SENTENCE_END
from softprompt.distillation.dataset import DistillationExample
from softprompt.distillation.queries import query_record

WHOLE_REQUEST = "Repeat the text."
PART_REQUEST = "Repeat the text that begins with: {}"
SHORTEST_PART = 64  # tokens of a part, at least
NAMED_WORDS = 6  # of a part, which its request names


def repetitions(
    chunk: int, text: str, longest: int, template: Template, tokenizer: Tokenizer
) -> list[DistillationExample]:
    """Rows in which a chunk is repeated, in parts of about `longest` tokens, each token in one of them.

    Args:
        chunk: number of the chunk.
        longest: tokens of a part.
    """
    rows = list[DistillationExample]()
    for i, part in enumerate(_parts(text, longest, tokenizer)):
        request, answer = WHOLE_REQUEST, part
        words = part.split()
        if i and len(words) > NAMED_WORDS:
            request = PART_REQUEST.format(" ".join(words[:NAMED_WORDS]))
            answer = part.split(None, NAMED_WORDS)[-1]
        record = query_record(request, template, f"repeat:{i}")
        ids = (*target_ids(answer, template, tokenizer), end_id(template, tokenizer))
        rows.append(DistillationExample(chunk, record, ids))
    return rows


def _parts(text: str, longest: int, tokenizer: Tokenizer) -> Iterator[str]:
    """The text in parts of whole sentences; only a sentence of more than `longest` tokens is split, between words."""

    def count(piece: str) -> int:
        return len(tokenizer.encode(piece, add_special_tokens=False))

    part, size = "", 0
    for sentence in _sentences(text):
        for piece in [sentence] if count(sentence) <= longest else re.findall(r"\s*\S+\s*", sentence):
            tokens = count(piece)
            if part and size + tokens > longest:
                yield part.strip()
                part, size = "", 0
            part, size = part + piece, size + tokens
    if part.strip():
        yield part.strip()


def _sentences(text: str) -> Sequence[str]:
    """Sentences with the space after them: together they are the text."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return [text[first:last] for first, last in zip([0, *ends], [*ends, len(text)], strict=True)]
