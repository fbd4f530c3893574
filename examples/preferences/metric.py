"""What the preferences ask for, as metrics of `softprompt eval --metric examples/preferences/metric.py:terse`."""

from __future__ import annotations


def terse(answer: str, references: list[str]) -> float:
    """1 for an answer of at most three words, else 0."""
    return float(0 < len(answer.split()) <= 3)


def contains(answer: str, references: list[str]) -> float:
    """1 if the right answer is in it."""
    return float(any(right.lower() in answer.lower() for right in references))


def words(answer: str, references: list[str]) -> float:
    """The number of its words."""
    return float(len(answer.split()))
