"""The official Python client."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.clients_real.conftest import PLAIN
from tests.clients_real.shapes import HI, TOOL, WHERE, Place, is_place

TOOLS: Any = [TOOL]
ASK: Any = [{"role": "user", "content": WHERE}]
FORCED: Any = {"type": "function", "function": {"name": "find_parcel"}}


def test_chat(model: str) -> None:
    made = openai.OpenAI().chat.completions.create(model=model, messages=HI, max_tokens=8)
    assert made.choices[0].message.content and made.usage is not None and made.usage.completion_tokens <= 8


def test_streaming(model: str) -> None:
    async def run() -> list[str]:
        stream = await openai.AsyncOpenAI().chat.completions.create(
            model=model,
            messages=HI,
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
        return [c.choices[0].delta.content or "" if c.choices else f"usage {c.usage}" async for c in stream]

    pieces = asyncio.run(run())
    assert len(pieces) > 3 and pieces[-1].startswith("usage CompletionUsage")


def test_tools(model: str) -> None:
    ai = openai.OpenAI()
    made = ai.chat.completions.create(model=model, messages=ASK, tools=TOOLS, tool_choice=FORCED, max_tokens=200)
    calls = made.choices[0].message.tool_calls
    assert calls is not None and len(calls) == 1
    call = calls[0]
    assert call.type == "function" and call.function.name == "find_parcel" and is_place(call.function.arguments)
    history: list[Any] = [
        *ASK,
        made.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "In Rome."},
    ]
    again = ai.chat.completions.create(model=model, messages=history, tools=TOOLS, max_tokens=4)
    assert again.choices[0].message.role == "assistant"


def test_structured_output(model: str) -> None:
    made = openai.OpenAI().chat.completions.parse(model=model, messages=ASK, response_format=Place, max_tokens=200)
    assert made.choices[0].message.parsed is not None


def test_responses(model: str) -> None:
    ai = openai.OpenAI()
    made = ai.responses.create(model=model, input="Say hello.", max_output_tokens=8)
    assert made.output_text
    with ai.responses.stream(model=model, input="Say hello.", max_output_tokens=8) as stream:
        assert next(event.type for event in stream) == "response.created"
    assert ai.responses.parse(model=model, input=WHERE, text_format=Place, max_output_tokens=60).output_parsed


def test_given_text() -> None:
    made = openai.OpenAI().completions.create(model=PLAIN, prompt="The parcel is", echo=True, logprobs=1, max_tokens=0)
    assert made.choices[0].text == "The parcel is"
    assert made.choices[0].logprobs is not None and len(made.choices[0].logprobs.tokens or ()) == 3


def test_errors(model: str) -> None:
    ai = openai.OpenAI(max_retries=0)
    with pytest.raises(openai.NotFoundError):
        ai.chat.completions.create(model=f"{model}-not", messages=HI)
    with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
        ai.chat.completions.create(model=model, messages=[{"role": "user", "content": "word " * 20_000}])
    assert caught.value.code == "context_length_exceeded"
