"""Splits a long text into chunks that fit the teacher's context: whole paragraphs, each chunk under its heading."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

SENTENCE_END = re.compile(r"(?<=[.!?…])\s+")
MAX_HEADING_CHARACTERS = 80
TokenCounter = Callable[[str], int]


def split_chunks(text: str, max_tokens: int, count: TokenCounter) -> list[str]:
    """Split a text into chunks of at most `max_tokens` tokens, in order; a text that fits is one chunk.

    A chunk begins with the heading of its first paragraph. Paragraphs are kept whole where they fit. Longer ones are
    split between sentences, and longer sentences between words.

    Args:
        count: returns the number of tokens of a text.
    """
    if count(text) <= max_tokens:
        return [text]
    chunks: list[str] = []
    heading, current = "", ""
    for block, is_heading in _blocks(text, max_tokens // 2, count):
        merged = f"{current}\n\n{block}" if current else block
        if current and count(merged) > max_tokens:
            chunks.append(current)
            merged = block if is_heading or not heading else f"{heading}\n\n{block}"
        current = merged
        heading = block if is_heading else heading
    return [*chunks, current]


def _blocks(text: str, max_tokens: int, count: TokenCounter) -> Iterator[tuple[str, bool]]:
    """Paragraphs, or parts of long ones, of at most `max_tokens` tokens; and whether each is a heading."""
    for paragraph in filter(None, (part.strip() for part in re.split(r"\n\s*\n", text))):
        if count(paragraph) <= max_tokens:
            yield paragraph, _is_heading(paragraph)
            continue
        for part in _merge(SENTENCE_END.split(paragraph), " ", max_tokens, count):
            if count(part) <= max_tokens:
                yield part, False
            else:
                yield from ((words, False) for words in _merge(part.split(), " ", max_tokens, count))


def _merge(parts: list[str], separator: str, max_tokens: int, count: TokenCounter) -> Iterator[str]:
    """Join neighbors while the result fits in `max_tokens` tokens."""
    current = ""
    for part in parts:
        merged = f"{current}{separator}{part}" if current else part
        if current and count(merged) > max_tokens:
            yield current
            merged = part
        current = merged
    if current:
        yield current


def _is_heading(paragraph: str) -> bool:
    """Whether a paragraph is a Markdown heading, or a short line without a sentence's end."""
    if "\n" in paragraph or len(paragraph) > MAX_HEADING_CHARACTERS:
        return False
    return paragraph.startswith("#") or paragraph[-1] not in ".!?,;:…\"')"
