"""LangChain (langchain-openai)."""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI

from tests.clients_real.shapes import PARAMETERS, WHERE, Place, is_place


def chat(model: str, **fields: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, max_tokens=fields.pop("max_tokens", 8), max_retries=0, **fields)  # type: ignore[call-arg]


def test_chat(model: str) -> None:
    assert chat(model).invoke([SystemMessage("Be brief."), HumanMessage("Say hello.")]).content
    answers = OpenAI(model=model, max_tokens=2, max_retries=0).generate(["One", "Two"])  # type: ignore[call-arg]
    assert len(answers.generations) == 2


def test_streaming(model: str) -> None:
    async def run() -> int:
        async with openai.DefaultAsyncHttpxClient() as client:  # LangChain's own outlives the event loop
            return len([chunk async for chunk in chat(model, http_async_client=client).astream("Say hello.")])

    assert asyncio.run(run()) > 3


def test_tools(model: str) -> None:
    tool = {"name": "find_parcel", "description": "Find it.", "parameters": PARAMETERS}
    bound = chat(model, max_tokens=200, temperature=0).bind_tools([tool], tool_choice="find_parcel")
    made = bound.invoke(WHERE)
    (call,) = made.tool_calls  # type: ignore[attr-defined]
    assert is_place(call["args"])
    history = [HumanMessage(WHERE), made, ToolMessage("In Rome.", tool_call_id=call["id"])]
    assert chat(model, max_tokens=4).invoke(history).type == "ai"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model: str, method: Any) -> None:
    assert chat(model, max_tokens=200, temperature=0).with_structured_output(Place, method=method).invoke(WHERE)


def test_responses(model: str) -> None:
    assert chat(model, use_responses_api=True).invoke("Say hello.").text


def test_errors(model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(model).invoke("word " * 20_000)
    assert "ContextOverflow" in type(caught.value).__name__
