"""Untrusted text on a terminal."""

from __future__ import annotations

import unicodedata

HARMLESS = "\n\t\u200c\u200d"  # zero-width joiners are part of words in Persian and Hindi, and of emoji


def escaped(text: str) -> str:
    """Text without terminal control: control characters, also bidirectional ones, are written as escapes."""
    return "".join(
        char if char in HARMLESS or unicodedata.category(char) not in ("Cc", "Cf") else repr(char)[1:-1]
        for char in text
    )
