"""instructor: answers as pydantic models, in all its modes that OpenAI's API has."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import instructor
import openai
import pytest
from instructor.dsl.partial import PartialLiteralMixin

from tests.clients_real.shapes import WHERE, Place

ASK: Any = [{"role": "user", "content": WHERE}]


def made(model: str, mode: instructor.Mode) -> Place:
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=mode)
    return client.chat.completions.create(
        model=model, messages=ASK, response_model=Place, max_tokens=200, max_retries=0
    )


class Draft(Place, PartialLiteralMixin):
    """A place that is not written to its end yet."""


def test_streaming(model: str) -> None:
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=instructor.Mode.JSON_SCHEMA)
    drafts = client.chat.completions.create_partial(
        model=model, messages=ASK, response_model=Draft, max_tokens=200, max_retries=0
    )
    places = [draft.city for draft in drafts]
    assert places[0] is None and places[-1] in ("Rome", "Oslo")


def test_tools(model: str) -> None:
    assert isinstance(made(model, instructor.Mode.TOOLS), Place)


def test_structured_output(model: str) -> None:
    assert isinstance(made(model, instructor.Mode.JSON_SCHEMA), Place)


def test_errors(model: str) -> None:
    with pytest.raises(Exception, match="does not exist"):
        made(f"{model}-not", instructor.Mode.JSON_SCHEMA)
