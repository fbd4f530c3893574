"""openai-agents."""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
from typing import Any, Literal

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)

from tests.clients_real.shapes import WHERE, Place

set_tracing_disabled(True)


@function_tool
def find_parcel(city: Literal["Rome", "Oslo"]) -> str:
    """Find it."""
    return f"It is in {city}."


def agent(model: str, *, responses: bool = False, settings: ModelSettings | None = None, **fields: Any) -> Agent[Any]:
    kind = OpenAIResponsesModel if responses else OpenAIChatCompletionsModel
    own = kind(model=model, openai_client=openai.AsyncOpenAI(max_retries=0))
    given = settings or ModelSettings(max_tokens=8)
    return Agent(name="one", instructions="Be brief.", model=own, model_settings=given, **fields)


def test_chat(model: str) -> None:
    assert Runner.run_sync(agent(model), "Say hello.").final_output


def test_streaming(model: str) -> None:
    async def run() -> list[str]:
        result = Runner.run_streamed(agent(model), "Say hello.")
        return [event.type async for event in result.stream_events()]

    assert asyncio.run(run()).count("raw_response_event") > 3


def test_tools(model: str) -> None:
    """The call is made and its result is read."""
    settings = ModelSettings(max_tokens=100, tool_choice="required")
    made = Runner.run_sync(agent(model, tools=[find_parcel], settings=settings), WHERE, max_turns=3)
    assert any(item.type == "tool_call_output_item" for item in made.new_items)


def test_structured_output(model: str) -> None:
    made = Runner.run_sync(agent(model, output_type=Place, settings=ModelSettings(max_tokens=200)), WHERE)
    assert isinstance(made.final_output, Place)


def test_responses(model: str) -> None:
    """A structured answer, since the client takes one that ends at `max_tokens` for a failure."""
    settings = ModelSettings(max_tokens=200, temperature=0)
    made = Runner.run_sync(agent(model, responses=True, output_type=Place, settings=settings), WHERE)
    assert isinstance(made.final_output, Place)


def test_errors(model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        Runner.run_sync(agent(f"{model}-not"), "Hi")
