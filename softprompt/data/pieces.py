"""Long texts cut into pieces, at the ends of paragraphs, lines, sentences or words; nothing is lost or changed."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["cut"]

# What a piece may end with, best first: a blank line, a line break, the end of a sentence, a space.
_ENDS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？]"), re.compile(r"\s+"))
_FULL = 0.5  # of the size: an end that fills less of a piece is passed over for the next kind of end


def cut(text: str, size: int) -> list[str]:
    """Pieces of at most `size` bytes of UTF-8, which joined are the text; a character is never cut.

    Each is as long as it can be while it ends with a paragraph, line, sentence or word; none is white space alone.
    """
    pieces: list[str] = []
    for piece in _pieces(text, size):
        if pieces and not piece.strip():
            pieces[-1] += piece  # white space may make a piece a little longer
        else:
            pieces.append(piece)
    if len(pieces) > 1 and not pieces[0].strip():
        pieces[:2] = ["".join(pieces[:2])]
    return pieces


def _pieces(text: str, size: int) -> Iterator[str]:
    position = 0
    while position < len(text):
        window = _fitting(text, position, size)
        if position + len(window) < len(text):
            window = window[: _end(window)]
        yield window
        position += len(window)


def _fitting(text: str, position: int, size: int) -> str:
    """The longest part of the text from `position` that has at most `size` bytes, at least one character."""
    window = text[position : position + size]
    fitting = window.encode("utf-8", "surrogatepass")[:size].decode("utf-8", "ignore")
    return fitting or window[:1]


def _end(window: str) -> int:
    """Where a window that is not the last one is cut."""
    for end in _ENDS:
        ends = [match.end() for match in end.finditer(window)]
        if ends and ends[-1] >= len(window) * _FULL:
            return ends[-1]
    return len(window)
