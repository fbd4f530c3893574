"""dspy."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from tests.clients_real.conftest import URL
from tests.clients_real.shapes import TOOL, WHERE, is_place

dspy: Any = pytest.importorskip("dspy", reason="not in this registry")
lm15: Any = pytest.importorskip("dspy.lm15", reason="this release takes no servers of one's own")
# DSPy asks for what a server is said to support, and takes a server that it does not know for one without schemas.
lm15.register_provider(
    lm15.ProviderDefinition.chat(
        lm15.AccessPolicy(provider="softprompt", base_url=f"{URL}/v1"), compat=lm15.OpenAIChatCompat.preset("vllm")
    ),
    supports=lm15.ModelSupport(function_calling=True, response_schema=True),
)


def lm(model: str, most: int = 8) -> Any:
    return dspy.LM(f"softprompt/{model}", api_key="any", max_tokens=most, cache=False, num_retries=0)


def test_chat(model: str) -> None:
    assert lm(model)("Say hello.")


class Choose(dspy.Signature):  # type: ignore[misc]
    """Where it is."""

    question: str = dspy.InputField()
    city: Literal["Rome", "Oslo"] = dspy.OutputField()


def test_streaming(model: str) -> None:
    async def run() -> list[Any]:
        return [part async for part in dspy.streamify(dspy.Predict(Choose))(question=WHERE)]

    with dspy.context(lm=lm(model, 200), adapter=dspy.JSONAdapter()):
        *parts, last = asyncio.run(run())
    assert len(parts) > 3 and last.city in ("Rome", "Oslo")


def test_tools(model: str) -> None:
    (made,) = lm(model, 200)(WHERE, tools=[TOOL], tool_choice="required")
    assert is_place(made["tool_calls"][0].function.arguments)


def test_structured_output(model: str) -> None:
    with dspy.context(lm=lm(model, 200), adapter=dspy.JSONAdapter()):
        assert dspy.Predict(Choose)(question=WHERE).city in ("Rome", "Oslo")


def test_errors(model: str) -> None:
    with pytest.raises(Exception, match="does not exist"):
        lm(f"{model}-not")("Hi")
