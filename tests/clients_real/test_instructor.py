"""instructor: answers as pydantic models, in all its modes that OpenAI's API has."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import instructor
import openai
import pytest

from tests.clients_real.shapes import WHERE, Place

ASK: Any = [{"role": "user", "content": WHERE}]


def made(model: str, mode: instructor.Mode) -> Place:
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=mode)
    return client.chat.completions.create(
        model=model, messages=ASK, response_model=Place, max_tokens=200, max_retries=0
    )


def test_tools(model: str) -> None:
    assert isinstance(made(model, instructor.Mode.TOOLS), Place)


def test_structured_output(model: str) -> None:
    assert isinstance(made(model, instructor.Mode.JSON_SCHEMA), Place)


def test_errors(model: str) -> None:
    with pytest.raises(Exception, match="does not exist"):
        made(f"{model}-not", instructor.Mode.JSON_SCHEMA)
