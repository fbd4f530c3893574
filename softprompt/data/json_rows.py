"""JSON text to decoded rows: a list of objects, an object that holds such a list, or one object after another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from softprompt.errors import DataError

__all__ = ["json_rows"]

_LISTS = ("data", "rows", "examples", "instances", "train")  # names of the list, if an object holds several


def json_rows(text: str, path: Path) -> Iterator[tuple[str, object]]:
    """The rows, decoded one by one, each with its `file:line`. Raises DataError for broken JSON and other values."""
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        yield from _items(text, start, path, whole=True)
        return
    if text[start : start + 1] != "{":
        raise _no_list(text, path)
    end = _skip(text, _decoded(text, start, path)[1])
    if end < len(text):  # JSON lines under another name
        yield from _lines(text, start, path)
        return
    for where, row in _items(text, _list_in(text, start, path), path, whole=False):
        yield from _articles(where, row)


def _items(text: str, start: int, path: Path, *, whole: bool) -> Iterator[tuple[str, object]]:
    """The items of the list that begins at `start`; `whole`: nothing may follow it."""
    position = _skip(text, start + 1)
    line, counted = 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        where = f"{path}:{line}"
        row, position = _decoded(text, position, path, where)
        yield where, row
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            raise DataError("the list of rows is broken after this row", where=where, expected="',' or ']'")
    if whole and _skip(text, position + 1) != len(text):
        raise DataError("there is text after the list of rows", where=path)


def _lines(text: str, start: int, path: Path) -> Iterator[tuple[str, object]]:
    """Objects one after another, with white space between them."""
    position = start
    line, counted = 1, 0
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        where = f"{path}:{line}"
        row, position = _decoded(text, position, path, where)
        yield where, row
        position = _skip(text, position)


def _list_in(text: str, start: int, path: Path) -> int:
    """Where the list of rows begins in the object at `start`."""
    found: dict[str, int] = {}
    position = _skip(text, start + 1)
    while text[position : position + 1] == '"':
        key, position = _decoded(text, position, path)
        position = _skip(text, _skip(text, position) + 1)  # behind the colon
        inside = _skip(text, position + 1)
        if text[position : position + 1] == "[" and text[inside : inside + 1] in ("{", "]"):
            found[str(key)] = position
        position = _skip(text, _decoded(text, position, path)[1])
        position = _skip(text, position + 1) if text[position : position + 1] == "," else position
    named = [found[name] for name in _LISTS if name in found]
    if not named and len(found) != 1:
        raise _no_list(text, path)
    return (named or list(found.values()))[0]


def _articles(where: str, row: object) -> Iterator[tuple[str, object]]:
    """The questions of an article with paragraphs, as in SQuAD's own files, a row each; other rows unchanged."""
    paragraphs = _object(row).get("paragraphs")
    if not isinstance(paragraphs, list):
        yield where, row
        return
    for paragraph in cast(list[object], paragraphs):
        inner = _object(paragraph)
        questions = inner.get("qas")
        for question in cast(list[object], questions) if isinstance(questions, list) else []:
            yield where, {"context": inner.get("context"), **_object(question)}


def _object(value: object) -> Mapping[str, object]:
    """The value, if it is a JSON object; otherwise an empty one."""
    return cast(Mapping[str, object], value) if isinstance(value, Mapping) else dict[str, object]()


def _decoded(text: str, position: int, path: Path, where: str | None = None) -> tuple[object, int]:
    """The value at a position, and where it ends."""
    try:
        return json.JSONDecoder().raw_decode(text, position)
    except (ValueError, RecursionError) as error:  # ValueError: broken JSON, or a number of absurd length
        where = where or f"{path}:{1 + text.count(chr(10), 0, position)}"
        raise DataError("the file is not valid JSON", where=where, got=str(error)) from error


def _no_list(text: str, path: Path) -> DataError:
    expected = 'a list of objects, {"data": [...]}, or one object a line'
    return DataError(
        "a .json data file must be a list of objects", where=f"{path}:1", expected=expected, got=repr(text[:60])
    )


def _skip(text: str, position: int) -> int:
    """The next position that is not JSON whitespace."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
