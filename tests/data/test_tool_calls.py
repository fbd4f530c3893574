"""Conversations with function calls: the calls are learned as the chat template writes them, definitions are given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import transformers as tf

from softprompt.data.default_template import default_template
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.spans import prompt_ids
from softprompt.data.template import Template
from softprompt.data.tokenize import tokenize
from softprompt.data.turns import compared_references
from softprompt.errors import DataError
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.formatting.inputs import input_ids
from softprompt.formatting.text_prompt import without_shared_system
from softprompt.prompts.card import Layout
from tests.support.reasoning import QWEN3
from tests.support.rows import one
from tests.support.tiny import tiny_tokenizer

# After Qwen2.5's: tools in the system turn, calls as JSON between tags.
_CALLS = (
    "{% for c in m.tool_calls %}{{ '<tool_call>' + ({'name': c.function.name, 'arguments': c.function.arguments}"
    " | tojson) + '</tool_call>' }}{% endfor %}"
)
_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
)
CHATML = (
    f"{_TOOLS}{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\\n' + m.content }}}}"
    f"{{% if m.tool_calls %}}{_CALLS}{{% endif %}}{{{{ '<|im_end|>\\n' }}}}{{% endfor %}}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
THINKING = _TOOLS + QWEN3.replace(
    "{{ ns.answer + ", f"{{{{ ns.answer }}}}{{% if m.tool_calls %}}{_CALLS}{{% endif %}}{{{{ "
)

TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"city": "Rome"}}}
WRITTEN = '<tool_call>{"name": "clock", "arguments": {"city": "Rome"}}</tool_call>'
ASKED = {"role": "user", "content": "When?"}
ROW: dict[str, Any] = {
    "messages": [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "clock", "content": "noon"},
        {"role": "assistant", "content": "It is noon."},
    ],
    "tools": TOOLS,
}


def tokenizer_of(chat_template: str = CHATML) -> tf.PreTrainedTokenizerBase:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template
    return tokenizer


def learned(row: Mapping[str, object], tokenizer: tf.PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """The text of a row's spans, and which are learned."""
    (example,) = tokenize([one(row)], Template("chat"), tokenizer, max_length=9999)
    spans: list[tuple[list[int], bool]] = []
    for token, mask in zip(example.ids, example.mask, strict=True):
        if not spans or spans[-1][1] != mask:
            spans.append(([], mask))
        spans[-1][0].append(token)
    return [(str(tokenizer.decode(ids)), mask) for ids, mask in spans]


def test_calls_and_answers_are_learned_and_results_are_given() -> None:
    tokenizer = tokenizer_of()
    tools, call, result, answer = learned(ROW, tokenizer)
    assert '"clock"' in tools[0] and tools[0].endswith("<|im_start|>assistant\n")
    assert call == (WRITTEN + "<|im_end|>", True)
    assert "noon" in result[0] and not result[1]
    assert answer == ("It is noon.<|im_end|>", True)


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a1", **CALL}]},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "clock", "arguments": '{"city": "Rome"}'}}],
        },
        {"role": "assistant", "content": None, "function_call": {"name": "clock", "arguments": '{"city": "Rome"}'}},
        {"from": "function_call", "value": '{"name": "clock", "arguments": {"city": "Rome"}}'},
    ],
)
def test_every_spelling_is_one_call(turn: dict[str, object]) -> None:
    name = "conversations" if "from" in turn else "messages"
    row = {name: [{"from": "human", "value": "When?"} if "from" in turn else ASKED, turn], "tools": json.dumps(TOOLS)}
    assert learned(row, tokenizer_of())[-1] == (WRITTEN + "<|im_end|>", True)


def test_a_thought_before_a_call_is_learned_with_it() -> None:
    tokenizer = tokenizer_of(THINKING)
    turn = {"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": [CALL]}
    given, words = learned({"messages": [ASKED, turn], "tools": TOOLS}, tokenizer)
    assert given[0].endswith("<|im_start|>assistant\n")
    assert words == (f"<think>\nLook.\n</think>\n\n{WRITTEN}<|im_end|>", True)
    given, words = learned({"messages": [ASKED, {**turn, "reasoning_content": ""}], "tools": TOOLS}, tokenizer)
    assert given[0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert words == (f"{WRITTEN}<|im_end|>", True)


def test_a_call_is_compared_as_the_model_writes_it() -> None:
    record, tokenizer = one({"messages": ROW["messages"][:2], "tools": TOOLS}), tokenizer_of()
    template = default_template([record], tokenizer, None, None)
    (compared,) = compared_references([record], template, tokenizer)
    assert compared.references == (WRITTEN,)
    prompt = tokenizer.decode(prompt_ids(record, template, tokenizer))
    assert isinstance(prompt, str) and '"clock"' in prompt and prompt.endswith("<|im_start|>assistant\n")


def test_it_is_written_as_it_was_read() -> None:
    record = one(ROW)
    assert one(shape_of(record).write(record)) == record


def test_a_chat_template_without_tools_is_refused() -> None:
    plain = tokenizer_of(CHATML.replace(_TOOLS, ""))
    with pytest.raises(DataError, match=r"(?s)does not write definitions of tools.*clock"):
        learned(ROW, plain)
    with pytest.raises(DataError, match=r"(?s)does not write tool calls.*clock"):
        learned({"messages": ROW["messages"]}, tokenizer_of(CHATML.replace(_CALLS, "")))


def formatted_for(template: Template) -> FormattedPrompt:
    return FormattedPrompt(None, template, Layout())


def test_a_conversation_with_tools_is_an_input() -> None:
    """As in training; the definitions outlive the system turn, and turns that are given as `Message`s."""
    tokenizer, formatted = tokenizer_of(), formatted_for(Template("chat"))
    turns = ROW["messages"][:3]
    record = one(ROW)
    wanted = prompt_ids(record, Template("chat"), tokenizer)
    assert input_ids(turns, formatted, tokenizer, tools=TOOLS) == wanted
    assert input_ids(record.messages[:3], formatted, tokenizer) == wanted
    assert input_ids(turns, formatted, tokenizer) != wanted


def test_tools_are_refused_by_prompts_for_texts() -> None:
    tokenizer, formatted = tokenizer_of(), formatted_for(Template("chat", "{prompt}"))
    with pytest.raises(DataError, match="takes no tools"):
        input_ids([ASKED], formatted, tokenizer, tools=TOOLS)
    system = {"role": "system", "content": "Be kind."}
    kind = formatted_for(Template("chat", "{prompt}", "Be kind."))
    with pytest.raises(DataError, match="takes no tools"):
        input_ids([system, ASKED], kind, tokenizer, tools=TOOLS)
    with pytest.raises(DataError, match="tools are for conversations"):
        input_ids("When?", formatted, tokenizer, tools=TOOLS)


def test_tools_stay_when_the_shared_system_turn_goes() -> None:
    system = {"role": "system", "content": "Be kind."}
    record = one({**ROW, "messages": [system, *ROW["messages"]]})
    bare = without_shared_system(record, Template("chat", "", "Be kind."))
    assert bare.messages[0].role == "user" and bare.messages[0].tools == record.messages[0].tools
