"""What teacher and student are asked: a text of the model's own, or a row of the user's, as a template's record."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from softprompt.data.records import Message, Record
from softprompt.data.template import Template


@dataclass(frozen=True)
class Query:
    """What is asked of teacher and student.

    Attributes:
        chunk: number of the piece of text that it is about.
        answer: what stands in the text; "" if the teacher writes it.
        kind: "question", "use", …, "continuation", "detail", or "rows" for the user's own.
    """

    chunk: int
    kind: str
    text: str
    answer: str = ""


def query_record(text: str, template: Template, where: str = "") -> Record:
    """A text as a row of the template: the user's turn, or its fields."""
    if template.kind == "chat" and not template.text:
        return Record({}, None, "messages", messages=(Message("user", text),), where=where)
    return Record(dict.fromkeys(template.names, text), None, "completion", where=where)


def said(row: Record) -> str:
    """All words of an input."""
    return " ".join([*row.fields.values(), *(message.content for message in row.messages)])


def finder(chunks: Sequence[str]) -> Callable[[str], int]:
    """What tells the number of the piece that shares the rarest words with a text (inverse document frequency)."""
    bags = [set(_words(chunk)) for chunk in chunks]
    counts = Counter(word for bag in bags for word in bag)
    rarity = {word: math.log(1 + len(bags) / count) for word, count in counts.items()}

    def nearest(text: str) -> int:
        asked = set(_words(text))
        return max(range(len(bags)), key=lambda i: sum(rarity[word] for word in asked & bags[i]))

    return nearest


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
