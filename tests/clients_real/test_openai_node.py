"""The official Node client."""

from __future__ import annotations

from tests.clients_real.conftest import node

SCRIPT = "openai.mjs"


def test_chat(model: str) -> None:
    assert node(SCRIPT, "chat", model)


def test_streaming(model: str) -> None:
    assert len(node(SCRIPT, "streaming", model)) > 3


def test_tools(model: str) -> None:
    assert node(SCRIPT, "tools", model)["city"] in ("Rome", "Oslo")


def test_structured_output(model: str) -> None:
    assert node(SCRIPT, "structured_output", model)["city"] in ("Rome", "Oslo")


def test_responses(model: str) -> None:
    assert node(SCRIPT, "responses", model)


def test_errors(model: str) -> None:
    assert node(SCRIPT, "errors", model) == ["NotFoundError", 404, "model_not_found"]
