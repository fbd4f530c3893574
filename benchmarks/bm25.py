"""Okapi BM25 over the sentences of a text: the words that retrieval would put before a question.

Robertson, Zaragoza 2009: The Probabilistic Relevance Framework: BM25 and Beyond, https://doi.org/10.1561/1500000019.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.models.frozen_lm import FrozenLM

K1, B = 1.5, 0.75  # saturation of a word's count, weight of a sentence's length


def words(text: str) -> list[str]:
    """Lower-case words."""
    return re.findall(r"\w+", text.lower())


def sentences(text: str) -> list[str]:
    """A text in sentences; lines end them, too."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


@dataclass(frozen=True)
class Ranking:
    """The sentences of a text, ready for queries."""

    passages: Sequence[str]

    def scores(self, query: str) -> list[float]:
        """How well each sentence answers the query."""
        counts = [Counter(words(passage)) for passage in self.passages]
        sizes = [sum(count.values()) for count in counts]
        mean = sum(sizes) / len(sizes)
        totals = [0.0] * len(counts)
        for word in set(words(query)):
            holding = sum(word in count for count in counts)
            worth = math.log(1 + (len(counts) - holding + 0.5) / (holding + 0.5))
            for i, (count, size) in enumerate(zip(counts, sizes, strict=True)):
                totals[i] += worth * count[word] * (K1 + 1) / (count[word] + K1 * (1 - B + B * size / mean))
        return totals

    def text(self, lm: FrozenLM, query: str, budget: int) -> str:
        """The best sentences within so many tokens, in the order of the text; the last one taken may be cut."""
        scores = self.scores(query)
        taken: dict[int, str] = {}
        room = budget
        for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
            ids = lm.encode(self.passages[i] + " ")[:room]
            taken[i] = str(lm.tokenizer.decode(ids)).strip()
            room -= len(ids)
            if room <= 0:
                break
        return " ".join(taken[i] for i in sorted(taken))
