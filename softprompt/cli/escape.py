"""Foreign text on a terminal."""

from __future__ import annotations

import unicodedata

HARMLESS = "\n\t\u200c\u200d"  # the joiners are letters' company in Persian, Hindi and emoji


def escaped(text: str) -> str:
    """Text that cannot steer the terminal: control characters, bidirectional ones too, are spelled out."""
    return "".join(
        char if char in HARMLESS or unicodedata.category(char) not in ("Cc", "Cf") else repr(char)[1:-1]
        for char in text
    )
