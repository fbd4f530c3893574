"""pydantic-ai."""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.settings import ModelSettings

from tests.clients_real.shapes import WHERE, Place

SHORT, LONGER = ModelSettings(max_tokens=8), ModelSettings(max_tokens=200)


def agent(model: str, **fields: Any) -> Agent[None, Any]:
    return Agent(OpenAIChatModel(model), retries=0, **fields)


def test_chat(model: str) -> None:
    assert agent(model, instructions="Be brief.").run_sync("Say hello.", model_settings=SHORT).output


def test_streaming(model: str) -> None:
    async def run() -> str:
        async with agent(model).run_stream("Say hello.", model_settings=SHORT) as result:
            return "".join([part async for part in result.stream_text(delta=True)])

    assert asyncio.run(run())


def test_tools(model: str) -> None:
    """Its default for typed output is a function that must be called."""
    assert isinstance(agent(model, output_type=Place).run_sync(WHERE, model_settings=LONGER).output, Place)


def test_structured_output(model: str) -> None:
    made = agent(model, output_type=NativeOutput(Place)).run_sync(WHERE, model_settings=LONGER)
    assert isinstance(made.output, Place)


def test_responses(model: str) -> None:
    assert Agent(OpenAIResponsesModel(model), retries=0).run_sync("Say hello.", model_settings=SHORT).output


def test_errors(model: str) -> None:
    with pytest.raises(ModelHTTPError, match="does not exist"):
        agent(f"{model}-not").run_sync("Hi")
