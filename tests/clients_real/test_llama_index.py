"""llama-index (openai-like)."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any, Literal

import openai
import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from tests.clients_real.conftest import URL
from tests.clients_real.shapes import WHERE, Place


def llm(model: str, **fields: Any) -> OpenAILike:
    given = {"max_tokens": 8, "is_chat_model": True, "is_function_calling_model": True, "max_retries": 0} | fields
    return OpenAILike(model=model, api_base=f"{URL}/v1", api_key="any", **given)


def find_parcel(city: Literal["Rome", "Oslo"]) -> str:
    """Find it."""
    return city


def test_chat(model: str) -> None:
    assert llm(model).chat([ChatMessage(role="user", content="Say hello.")]).message.content
    assert llm(model, is_chat_model=False).complete("Hello, my").text


def test_streaming(model: str) -> None:
    assert len(list(llm(model).stream_chat([ChatMessage(role="user", content="Say hello.")]))) > 3


def test_tools(model: str) -> None:
    tool = FunctionTool.from_defaults(find_parcel)
    made = llm(model, max_tokens=200).chat_with_tools([tool], WHERE, tool_required=True)
    assert made.message.additional_kwargs["tool_calls"]


def test_structured_output(model: str) -> None:
    made = llm(model, max_tokens=200, should_use_structured_outputs=True).structured_predict(
        Place, PromptTemplate(WHERE)
    )
    assert isinstance(made, Place)


def test_errors(model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        llm(model).chat([ChatMessage(role="user", content="word " * 20_000)])
