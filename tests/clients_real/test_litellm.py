"""litellm: one function for every provider."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import pytest

from tests.clients_real.conftest import URL
from tests.clients_real.shapes import HI, TOOL, WHERE, Place, is_place

litellm: Any = pytest.importorskip("litellm", reason="not in this registry")
ASK = [{"role": "user", "content": WHERE}]


def ask(model: str, **fields: Any) -> Any:
    return litellm.completion(f"hosted_vllm/{model}", api_base=f"{URL}/v1", api_key="any", num_retries=0, **fields)


def test_chat(model: str) -> None:
    assert ask(model, messages=HI, max_tokens=8).choices[0].message.content


def test_streaming(model: str) -> None:
    assert len(list(ask(model, messages=HI, max_tokens=8, stream=True))) > 3


def test_tools(model: str) -> None:
    choice = {"type": "function", "function": {"name": "find_parcel"}}
    made = ask(model, messages=ASK, tools=[TOOL], tool_choice=choice, max_tokens=200)
    assert is_place(made.choices[0].message.tool_calls[0].function.arguments)


def test_structured_output(model: str) -> None:
    assert is_place(ask(model, messages=ASK, response_format=Place, max_tokens=200).choices[0].message.content)


def test_responses(model: str) -> None:
    options = {"model": f"openai/{model}", "api_base": f"{URL}/v1", "api_key": "any"}
    made = litellm.responses(input="Hi", max_output_tokens=8, **options)
    assert made.output[0].content[0].text


def test_errors(model: str) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(model, messages=[{"role": "user", "content": "word " * 20_000}])
    with pytest.raises(litellm.NotFoundError):
        ask(f"{model}-not", messages=HI)
