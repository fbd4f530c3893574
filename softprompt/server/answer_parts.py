"""Words, thoughts and function calls of an answer, told apart while it is generated.

What looks like a call and is none stays text: no JSON of a call, or a function that the request did not define.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from softprompt.data.call_format import CallFormat
from softprompt.models.response_events import ResponseEvents, TextEvent
from softprompt.server.call_text import CallPart, CallReader

THOUGHTS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class AnswerParts:
    """New parts of an answer."""

    text: str = ""
    thought: str = ""
    calls: tuple[CallPart, ...] = ()


@dataclass(frozen=True)
class AnswerFormat:
    """How answers are told apart.

    Attributes:
        response_template: Transformers' declaration of the fields.
        markers: what begins and ends a call, which is shown again when it is none.
        before: text that the given text ends with and that belongs to the answer, such as the tag of a thought.
        functions: names of the functions that may be called.
        keeps_special: whether control tokens are part of the format.
        most_calls: calls of an answer; None is any number.
        uses_old_names: whether a call is answered in the older field `function_call`.
        is_own: whether the tokenizer brought the response template, so that calls are what it makes of their text.
    """

    response_template: Mapping[str, object]
    markers: tuple[str, str] = ("", "")
    before: str = ""
    functions: frozenset[str] = frozenset()
    keeps_special: bool = False
    most_calls: int | None = None
    uses_old_names: bool = False
    is_own: bool = False


def response_template(calls: CallFormat | None, tags: tuple[str, str] | None) -> dict[str, object]:
    """Transformers' declaration of an answer with calls in this format, and thoughts between these tags."""
    fields: dict[str, object] = {"content": {"content": "text"}}
    if tags is not None:
        fields["reasoning_content"] = {"open": tags[0], "close": tags[1], "content": "text"}
    if calls is not None:
        opening, closing = markers(calls)
        own: dict[str, object] = {"content": "text", "repeats": True}
        # Without a marker the whole answer is a call's JSON, or none of it.
        own |= {"open": opening} if opening else {"open_pattern": r"\A(?=\s*\{)"}
        fields["tool_calls"] = own | ({"close": closing} if closing else {})
    return {"start_anchor": "\0", "fields": fields}


def markers(calls: CallFormat) -> tuple[str, str]:
    """What begins and ends a call, or a list of calls, without space and without the brackets of a list."""
    opening, closing = calls.opening.strip(), calls.closing.strip()
    if opening.endswith("[") and closing.startswith("]"):
        return opening[:-1].strip(), closing[1:].strip()
    return opening, closing


@final
class AnswerReader:
    """Reads one answer."""

    def __init__(self, answer: AnswerFormat) -> None:
        self._format, self._failed = answer, False  # whether the rest is taken as it is
        self._events = ResponseEvents(answer.response_template, answer.before)
        self._calls, self._open = CallReader(answer.functions, answer.most_calls), ""
        self._words, self._thought = _Trimmed(), _Trimmed(begun=False)

    @property
    def called(self) -> int:
        """Number of calls so far."""
        return self._calls.count

    def read(self, text: str, *, end: bool) -> AnswerParts:
        """The parts that new text adds; with `end` also all that was held back."""
        if self._failed:
            return AnswerParts(text)
        try:
            events = self._events.feed(text) if text else []
            last = self._events.end() if end else []
        except ValueError:  # of a response template that a tokenizer brings
            self._failed = True
            return AnswerParts(self._words.add(self._open + text, end=True))
        parts, more = self._parts(events, self._format.markers[1]), self._parts(last, "")
        rest = self._words.add("", end=True) if end and not self.called else ""
        return AnswerParts(parts.text + more.text + rest, parts.thought + more.thought, parts.calls + more.calls)

    def _parts(self, events: list[TextEvent], closing: str) -> AnswerParts:
        """What these events hold; `closing` is what ended a call, nothing where the answer ended in it."""
        text, thought = "", ""
        calls = list[CallPart]()
        for event in events:
            if event.field in THOUGHTS:
                thought += self._thought.add(event.text)
                self._words = _Trimmed(begun=False) if event.is_end else self._words
            elif event.field != "tool_calls":
                text += self._words.add(event.text)
            elif not event.is_end:
                self._open += event.text
                calls += [] if self._format.is_own else self._calls.feed(event.text)
            else:
                made, rest = self._end_of_calls(event.value)
                if made is None:
                    text += self._words.add(f"{self._format.markers[0]}{rest}{closing}")
                else:
                    self._words = _Trimmed(begun=False)
                    text += self._words.add(rest)
                    calls += made
                self._open = ""
        return AnswerParts(text, thought, tuple(calls))

    def _end_of_calls(self, value: object) -> tuple[list[CallPart] | None, str]:
        """Where a place with calls ends: what is left of its calls, None if it had none, and its other text."""
        if not self._format.is_own:
            found, rest = self._calls.end()
            return [] if found else None, rest
        try:
            made = self._calls.whole(json.loads(value) if isinstance(value, str) else value)
        except (ValueError, RecursionError):
            made = None
        return made, self._open if made is None else ""


class _Trimmed:
    """Text whose last space waits for more text, and whose first is left out unless it has begun."""

    def __init__(self, *, begun: bool = True) -> None:
        self._begun, self._space = begun, ""

    def add(self, text: str, *, end: bool = False) -> str:
        """What can be shown now; with `end` all."""
        text = self._space + text
        text = text if self._begun else text.lstrip()
        shown = text if end else text.rstrip()
        self._space, self._begun = text[len(shown) :], self._begun or bool(shown)
        return shown
