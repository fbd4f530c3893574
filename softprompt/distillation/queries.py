"""Queries that teacher and student answer: generated texts, or the user's rows, as records of a template."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from softprompt.data.records import Message, Record
from softprompt.data.template import Template, input_record, turns_record


class QueryDraft(NamedTuple):
    """A query of a single text.

    Attributes:
        kind: see `Query`.
        text: the user's message.
        answer: its answer in the text; "" if the teacher answers it.
    """

    kind: str
    text: str
    answer: str = ""


@dataclass(frozen=True)
class Query:
    """A query about one chunk of a text, answered by teacher and student.

    Attributes:
        chunk: number of the chunk.
        kind: "question", "use", "structure", "summary" or "creative" (answered by the teacher), "detail", "cloze" or
            "continuation" (answered by the text), or "rows" for the user's own.
        text: the user's message.
        answer: its answer in the text; "" if the teacher answers it.
    """

    chunk: int
    kind: str
    text: str
    answer: str = ""


def query_record(text: str, template: Template, where: str = "") -> Record:
    """Turn a query's text into a record of the template: the user's turn, or the template's fields."""
    if template.kind == "chat" and not template.text:
        return turns_record([Message("user", text)], where)
    return input_record(dict.fromkeys(template.names, text), where)


def record_words(row: Record) -> str:
    """All words of a record's fields and messages."""
    return " ".join([*row.fields.values(), *(message.content for message in row.messages)])


def nearest_chunk(chunks: Sequence[str]) -> Callable[[str], int]:
    """Build a function from a text to the number of its nearest chunk.

    Chunks are scored by the inverse document frequencies of the words that they share with the text.
    """
    chunk_words = [set(_words(chunk)) for chunk in chunks]
    counts = Counter(word for words in chunk_words for word in words)
    rarity = {word: math.log(1 + len(chunk_words) / count) for word, count in counts.items()}

    def nearest(text: str) -> int:
        words = set(_words(text))
        return max(range(len(chunk_words)), key=lambda i: sum(rarity[word] for word in words & chunk_words[i]))

    return nearest


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
