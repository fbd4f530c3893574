"""A long text in pieces that a teacher can read: whole paragraphs, each piece under the heading it belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

SENTENCE = re.compile(r"(?<=[.!?…])\s+")
LONGEST_HEADING = 80  # characters
Count = Callable[[str], int]


def chunks(text: str, most: int, count: Count) -> list[str]:
    """The text in pieces of at most `most` tokens, in order; one piece if it fits.

    A piece begins with the heading that its first paragraph stands under. Paragraphs are kept whole where they fit,
    longer ones are cut between sentences, and sentences between words.

    Args:
        count: tokens of a text.
    """
    if count(text) <= most:
        return [text]
    found: list[str] = []
    heading, current = "", ""
    for part, is_heading in _parts(text, most // 2, count):
        joined = f"{current}\n\n{part}" if current else part
        if current and count(joined) > most:
            found.append(current)
            joined = part if is_heading or not heading else f"{heading}\n\n{part}"
        current = joined
        heading = part if is_heading else heading
    return [*found, current]


def _parts(text: str, most: int, count: Count) -> Iterator[tuple[str, bool]]:
    """Paragraphs, or pieces of long ones, of at most `most` tokens; and whether each is a heading."""
    for paragraph in filter(None, (part.strip() for part in re.split(r"\n\s*\n", text))):
        if count(paragraph) <= most:
            yield paragraph, _is_heading(paragraph)
            continue
        for piece in _packed(SENTENCE.split(paragraph), " ", most, count):
            if count(piece) <= most:
                yield piece, False
            else:
                yield from ((words, False) for words in _packed(piece.split(), " ", most, count))


def _packed(pieces: list[str], between: str, most: int, count: Count) -> Iterator[str]:
    """Neighbours joined while they fit."""
    current = ""
    for piece in pieces:
        joined = f"{current}{between}{piece}" if current else piece
        if current and count(joined) > most:
            yield current
            joined = piece
        current = joined
    if current:
        yield current


def _is_heading(paragraph: str) -> bool:
    """A Markdown heading, or a short line that no sentence ends."""
    if "\n" in paragraph or len(paragraph) > LONGEST_HEADING:
        return False
    return paragraph.startswith("#") or paragraph[-1] not in ".!?,;:…\"')"
