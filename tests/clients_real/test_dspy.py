"""dspy."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from tests.clients_real.conftest import URL

dspy: Any = pytest.importorskip("dspy", reason="not in this registry")


def lm(model: str, most: int = 8) -> Any:
    return dspy.LM(f"openai/{model}", api_base=f"{URL}/v1", api_key="any", max_tokens=most, cache=False, num_retries=0)


def test_chat(model: str) -> None:
    assert lm(model)("Say hello.")


def test_structured_output(model: str) -> None:
    class Choose(dspy.Signature):  # type: ignore[misc]
        """Where it is."""

        question: str = dspy.InputField()
        city: Literal["Rome", "Oslo"] = dspy.OutputField()

    with dspy.context(lm=lm(model, 200), adapter=dspy.JSONAdapter()):
        assert dspy.Predict(Choose)(question="Rome or Oslo?").city in ("Rome", "Oslo")


def test_errors(model: str) -> None:
    with pytest.raises(Exception, match="does not exist"):
        lm(f"{model}-not")("Hi")
