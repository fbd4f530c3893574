"""Splits an answer into its fields while it is generated: thoughts, function calls, words.

The parser is Transformers' own, which also runs the response templates that tokenizers bring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, cast, final

__all__ = ["ResponseEvents", "TextEvent", "own_response_template"]


@dataclass(frozen=True)
class TextEvent:
    """A piece of a field, or its end.

    Attributes:
        field: "content", "reasoning_content", "tool_calls", or another of a tokenizer's response template.
        text: of a piece; of an end empty.
        is_end: whether the field ends here; further text may open it again.
        value: of an end: the field's content as its template reads it.
    """

    field: str
    text: str = ""
    is_end: bool = False
    value: object = None


class _Parser(Protocol):
    def feed(self, text: str) -> list[dict[str, object]]: ...

    def finalize(self) -> tuple[dict[str, object], list[dict[str, object]]]: ...


@final
class ResponseEvents:
    """Reads one answer.

    Args:
        response_template: Transformers' declaration of the fields.
        before: the end of the given text from where the assistant's turn begins, e.g. the opened tag of a thought.
    """

    def __init__(self, response_template: Mapping[str, object], before: str = "") -> None:
        from transformers.utils.chat_parsing import ResponseParser

        # Given text is fed like the answer, since the parser cuts its own `prefix` at an anchor.
        self._parser = cast("_Parser", ResponseParser(dict(response_template), prefix=""))
        self.feed(before)

    def feed(self, text: str) -> list[TextEvent]:
        """What new text holds. Raises ValueError for a field that is not as its response template says."""
        return [event for raw in self._parser.feed(text) if (event := _event(raw)) is not None]

    def end(self) -> list[TextEvent]:
        """What was held back. Raises ValueError as `feed` does."""
        return [event for raw in self._parser.finalize()[1] if (event := _event(raw)) is not None]


def _event(raw: Mapping[str, object]) -> TextEvent | None:
    kind = cast("Literal['region_open', 'region_chunk', 'region_close']", raw["type"])
    field = str(raw["field"])
    if kind == "region_chunk":
        return TextEvent(field, str(raw["text"]))
    return TextEvent(field, is_end=True, value=raw.get("value")) if kind == "region_close" else None


def own_response_template(tokenizer: object) -> Mapping[str, object] | None:
    """The response template that a tokenizer brings; None if it has none."""
    found = getattr(tokenizer, "response_template", None)
    return cast("Mapping[str, object]", found) if isinstance(found, Mapping) else None
