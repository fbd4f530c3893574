"""How a chat template writes calls is found out by rendering it."""

from __future__ import annotations

import json

import pytest

from softprompt.data.call_format import HERMES, CallFormat, call_format, in_plain_turns, tools_text
from softprompt.data.records import Message
from softprompt.data.tokenizer import chat_template_text
from tests.support.calling import calling_tokenizer
from tests.support.reasoning import reasoning_tokenizer
from tests.support.tiny import tiny_tokenizer


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("qwen", CallFormat("\n<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "arguments")),
        ("llama3", CallFormat("", "", "", "parameters")),
        ("mistral", CallFormat("[TOOL_CALLS][", ", ", "]", "arguments")),
        ("xml", None),
    ],
)
def test_the_families(family: str, wanted: CallFormat | None) -> None:
    assert call_format(calling_tokenizer(family)) == wanted


def test_a_template_that_knows_no_tools() -> None:
    assert call_format(tiny_tokenizer()) == HERMES == call_format(reasoning_tokenizer("qwen3"))
    assert call_format(tiny_tokenizer(closing=True)) == HERMES, "no chat template at all"
    assert call_format(tiny_tokenizer(), chat_template_text(calling_tokenizer("llama3"))) == call_format(
        calling_tokenizer("llama3")
    )


def test_plain_turns() -> None:
    """Calls and results as words; results of one answer's calls are one turn."""
    calls = [{"type": "function", "function": {"name": name, "arguments": {"a": "é"}}} for name in ("f", "g")]
    turns = [
        Message("user", "Hi", tools="[]"),
        Message("assistant", "Well", json.dumps(calls)),
        Message("tool", "1", name="f"),
        Message("tool", "2", name="g"),
        Message("user", "So?"),
    ]
    made = in_plain_turns(turns)
    assert [(message.role, message.content) for message in made] == [
        ("user", "Hi"),
        (
            "assistant",
            'Well\n<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "g", "arguments": {"a": "é"}}\n</tool_call>',
        ),
        ("user", "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"),
        ("user", "So?"),
    ]
    assert all(message == Message(message.role, message.content) for message in made)
    assert '{"name": "f"}' in tools_text('[{"name": "f"}]')
