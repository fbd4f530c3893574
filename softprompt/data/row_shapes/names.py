"""Likely columns for a field under another name: for error messages, never to read rows by."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

__all__ = ["columns_flag", "likely_column", "likely_columns"]

_SYNONYMS: Mapping[str, str] = {
    "prompt": "question query instruction input source src user human request problem ask",
    "completion": "answer response reply output target tgt assistant bot summary solution translation result",
    "text": "sentence content body review comment tweet post document article message utterance passage headline",
    "label": "class category sentiment intent tag topic stars rating score emotion target y",
    "messages": "dialog dialogue chat turns conversation conversations",
    "question": "prompt query stem problem input",
    "choices": "options candidates alternatives endings answers",
    "answer": "correct gold solution key label target right",
}
_LISTS = ("messages", "choices")  # fields that hold lists; the others hold text
_LEAST = 0.7  # likeness of two names


def likely_columns(fields: Collection[str], row: Mapping[str, object]) -> tuple[dict[str, str], float]:
    """A column for each field, and how likely they are meant (0 to 1); no columns if one field has none."""
    left, found = dict(row), dict[str, str]()
    likeness = 0.0
    for field in fields:
        ranked = sorted((-_likeness(field, name, value), name) for name, value in left.items())
        if not ranked or -ranked[0][0] < _LEAST:
            return {}, 0.0
        score, name = ranked[0]
        found[field], likeness = name, likeness - score / len(fields)
        del left[name]
    return found, likeness


def columns_flag(columns: Mapping[str, str]) -> str:
    """The renaming as typed on the command line, where names with spaces need quotes."""
    text = ",".join(f"{ours}={theirs}" for ours, theirs in columns.items())
    return f'--columns "{text}"' if any(char in text for char in " '$&;|()<>*?") else f"--columns {text}"


def likely_column(field: str, row: Mapping[str, object]) -> str | None:
    """The column that a missing field may be called by, if there is one."""
    columns, _ = likely_columns([field], {name: value for name, value in row.items() if name != field})
    return columns.get(field)


def _likeness(field: str, name: str, value: object) -> float:
    """How likely a column is this field: by its name, and by whether it holds a list."""
    if isinstance(value, list | dict) != (field in _LISTS) or value is None:
        return 0.0
    plain = name.casefold().strip()
    if plain == field:
        return 1.0
    names = _SYNONYMS.get(field, "").split()
    if plain in names:
        return 0.9 - 0.01 * names.index(plain)
    words = {word.rstrip("s") for word in re.split(r"[\W_]+", plain)}
    if words & {field, *names}:
        return 0.8
    return max(difflib.SequenceMatcher(None, plain, known).ratio() for known in (field, *names)) - 0.05
