"""Labels and answers as they stand in files (numbers, truth values, lists, objects) as the words that are learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

__all__ = ["answer_list", "as_word"]

_ANSWER_KEYS = ("text", "value", "answer", "aliases")  # SQuAD: text; TriviaQA: value and aliases


def as_word(value: object) -> object:
    """Numbers and truth values as JSON spells them, 3.0 as 3; NaN as None; anything else unchanged."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    return str(value) if isinstance(value, int) else value


def answer_list(value: object) -> list[object]:
    """All answers in a value: itself, the items of a list, or those under the usual names of an object."""
    if isinstance(value, list):
        return [answer for item in cast(list[object], value) for answer in answer_list(item)]
    if isinstance(value, Mapping):
        answers = cast(Mapping[str, object], value)
        return [answer for key in _ANSWER_KEYS if key in answers for answer in answer_list(answers[key])]
    word = as_word(value)
    return [] if word is None else [word]
