"""Function calls in an answer's text, read as it is generated.

A call is begun as soon as the name of a function that the request defines and the brace of its arguments are there.
From then on the text of its arguments is passed on as it comes. Other JSON is read as a whole: a call without
arguments, or one whose name comes last. What is no call stays text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Set
from dataclasses import dataclass
from typing import Literal, final

_BEGUN = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


@dataclass(frozen=True)
class CallPart:
    """The next part of a call in an answer.

    Attributes:
        index: the call's number in the answer.
        id: with the first part, whose arguments are empty; "" later.
        name: the function's, with the first part; "" later.
        arguments: their new text. The parts of a whole call are JSON of an object.
        is_last: whether the arguments are complete.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    is_last: bool = False


@final
class CallReader:
    """Reads the calls of one answer, whose text may be in several places.

    Args:
        functions: names of the functions that may be called.
        most: number of calls after which further ones are left out; None: none are.

    Attributes:
        count: number of calls so far.
    """

    def __init__(self, functions: Set[str], most: int | None) -> None:
        self.count = 0
        self._functions, self._most = functions, most
        self._state: Literal["between", "head", "arguments", "tail"] = "between"
        self._head, self._rest = "", ""  # an object that is no call yet; text of this place that is none
        self._found, self._end = False, _JsonEnd()

    def feed(self, text: str) -> list[CallPart]:
        """The parts that new text of a place with calls adds."""
        parts = list[CallPart]()
        while text:
            if self._state == "between":
                at = text.find("{")
                before, text = (text, "") if at < 0 else (text[:at], text[at:])
                self._rest += before
                self._go_on("head" if text else "between", 0)
            elif self._state == "head":
                text = self._read_head(text, parts)
            else:
                stop = self._end.find(text)
                if self._state == "arguments":
                    parts.append(CallPart(self.count - 1, arguments=text[:stop], is_last=stop is not None))
                text = "" if stop is None else text[stop:]
                if stop is not None:
                    self._go_on("tail" if self._state == "arguments" else "between", 1)
        return parts

    def end(self) -> tuple[bool, str]:
        """Whether this place had a call, and its text that is none. The next text is of another place."""
        found, rest = self._found, self._rest + self._head
        self._found, self._rest = False, ""
        self._go_on("between", 0)
        return found, rest.strip(" \n\r\t,[]") if found else rest

    def whole(self, value: object) -> list[CallPart] | None:
        """The calls in an object or a list of them; None if it holds anything else."""
        values = value if isinstance(value, list) else [value]
        read = [_call(one, self._functions) for one in values]
        calls = [one for one in read if one is not None]
        if len(calls) < len(read) or not calls:
            return None
        return [part for name, arguments in calls for part in self._whole(name, arguments)]

    def _go_on(self, state: Literal["between", "head", "arguments", "tail"], depth: int) -> None:
        self._state, self._head = state, ""
        self._end = _JsonEnd(depth)

    def _read_head(self, text: str, parts: list[CallPart]) -> str:
        """Read on in an object that is no call yet; what is left of the text."""
        written = self._head + text
        begun = _BEGUN.match(written)
        name = _parsed(begun[1]) if begun is not None else None
        if begun is not None and isinstance(name, str) and name in self._functions:
            self._found = True
            if self._most is not None and self.count >= self._most:
                self._go_on("tail", 1)
            else:
                parts.append(self._begin(name))
                self._go_on("arguments", 0)
            return written[begun.end() :]
        stop = self._end.find(text)
        if stop is None:
            self._head = written
            return ""
        value = written[: len(self._head) + stop]
        calls = self.whole(_parsed(value))
        if calls is None:
            self._rest += value
        else:
            self._found = True
            parts += calls
        self._go_on("between", 0)
        return text[stop:]

    def _begin(self, name: str) -> CallPart:
        self.count += 1
        return CallPart(self.count - 1, f"call_{secrets.token_hex(12)}", name)

    def _whole(self, name: str, arguments: str) -> list[CallPart]:
        if self._most is not None and self.count >= self._most:
            return []
        return [self._begin(name), CallPart(self.count - 1, arguments=arguments, is_last=True)]


@final
class _JsonEnd:
    """Finds the end of a JSON object or list whose text comes in pieces, from `depth` brackets in."""

    def __init__(self, depth: int = 0) -> None:
        self._depth, self._quoted = depth, False
        self._escaped = False

    def find(self, text: str) -> int | None:
        """The number of characters up to the end; None where it goes on."""
        for i, letter in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = letter == "\\", letter != '"'
            elif letter == '"':
                self._quoted = True
            else:
                self._depth += (letter in "{[") - (letter in "}]")
                if self._depth <= 0:
                    return i + 1
        return None


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _call(value: object, functions: Set[str]) -> tuple[str, str] | None:
    """The function's name and its arguments as JSON; None if it is no call of these functions."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or name not in functions or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)
