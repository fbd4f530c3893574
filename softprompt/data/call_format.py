"""How a chat template writes function calls, found out by rendering probes.

    Qwen, Hermes   <tool_call>\\n{"name": "time", "arguments": {…}}\\n</tool_call>
    Llama 3        {"name": "time", "parameters": {…}}
    Mistral        [TOOL_CALLS] [{"name": "time", "arguments": {…}}, …]

A chat template that knows no tools gets the words of Hermes (https://github.com/NousResearch/Hermes-Function-Calling):
definitions in a system turn, calls in the assistant's words, results in the user's. Knows nothing about token ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast, final

from softprompt.data.records import Message
from softprompt.data.thoughts import thought_format
from softprompt.data.tokenizer import Tokenizer, chat_template_text, render_chat
from softprompt.errors import DataError

__all__ = ["HERMES", "CallFormat", "call_format", "in_plain_turns", "tools_text"]

# Letters alone: a chat template may trim or escape anything else.
_ASKED = "SOFTPROMPTQUESTIONTEXT"
_NAME, _OTHER = "softpromptprobe", "softpromptother"
_GIVEN = {"softpromptkey": "SOFTPROMPTVALUE"}


@final
@dataclass(frozen=True)
class CallFormat:
    """How calls are written in the assistant's words.

    Attributes:
        opening: text before the first call's JSON.
        between: text between two calls; empty where there is one call at most.
        closing: text after the last call's JSON.
        arguments: the field of a call's JSON that holds its arguments.
        is_known: whether the chat template itself writes definitions, calls and results.
    """

    opening: str
    between: str
    closing: str
    arguments: str
    is_known: bool = True

    def before_arguments(self, name: str) -> str:
        """A call's JSON up to its arguments; a brace closes it."""
        return f'{{"name": {json.dumps(name)}, {json.dumps(self.arguments)}: '


HERMES = CallFormat("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "arguments", is_known=False)


def call_format(tokenizer: Tokenizer, chat_template: str = "") -> CallFormat | None:
    """How calls are written: as the chat template writes them, as `HERMES` where it knows no tools.

    None: it knows tools, and writes calls in a way that is no JSON.

    Args:
        chat_template: Jinja text in place of the tokenizer's own.
    """
    return _probed(tokenizer, chat_template or chat_template_text(tokenizer))


@lru_cache(maxsize=32)
def _probed(tokenizer: Tokenizer, chat_template: str) -> CallFormat | None:
    asked = Message("user", _ASKED, tools=json.dumps([_tool(_NAME), _tool(_OTHER)]))

    def turn(*names: str) -> str:
        """The assistant's turn with these calls, after the generation prompt and its empty thought."""
        called = Message("assistant", "", calls=json.dumps([_call(name, i) for i, name in enumerate(names)]))
        texts = [
            render_chat(given, tokenizer, add_generation_prompt=opens, chat_template=chat_template)
            for given, opens in (((asked,), True), ((asked, called), False))
        ]
        opening, thoughts = texts[0], thought_format(tokenizer, chat_template)
        if not texts[1].startswith(opening) and thoughts is not None:
            opening = opening.removesuffix(thoughts.asks_not)
        if not texts[1].startswith(opening):
            raise DataError("the generation prompt is not the beginning of a turn with calls")
        return texts[1][len(opening) :]

    try:
        one = turn(_NAME)
    except DataError:  # it leaves definitions or calls out, or refuses such a conversation
        return HERMES
    found = _find(one, _NAME)
    if found is None:
        return None
    answered = render_chat(
        (replace(asked, tools=""), Message("assistant", _NAME)),
        tokenizer,
        add_generation_prompt=False,
        chat_template=chat_template,
    )
    after = answered.rpartition(_NAME)[2].strip()  # what ends a turn
    closing = one[found[1] :].rstrip()
    closing = closing.removesuffix(after).rstrip() if after else closing
    return CallFormat(one[: found[0]], _between(turn), closing, found[2])


def _between(turn: object) -> str:
    """Text between two calls; "" where the chat template refuses two."""
    assert callable(turn)
    try:
        text = cast(str, turn(_NAME, _OTHER))
    except DataError:
        return ""
    first, second = _find(text, _NAME), _find(text, _OTHER)
    return "" if first is None or second is None else text[first[1] : second[0]]


def _find(text: str, name: str) -> tuple[int, int, str] | None:
    """Where the JSON of a call begins and ends, and the field of its arguments; None if there is none."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            value, stop = cast("tuple[object, int]", decoder.raw_decode(text, start))
        except ValueError:
            value, stop = None, 0
        if isinstance(value, dict):
            call = cast("dict[str, object]", value)
            fields = [field for field, own in call.items() if own == _GIVEN]
            if call.get("name") == name and fields and list(call)[:2] == ["name", fields[0]]:
                return start, stop, fields[0]
        start = text.find("{", start + 1)
    return None


def _tool(name: str) -> dict[str, object]:
    field = {"type": "string", "description": "text"}
    parameters = {"type": "object", "properties": {next(iter(_GIVEN)): field}, "required": list(_GIVEN)}
    return {"type": "function", "function": {"name": name, "description": "text", "parameters": parameters}}


def _call(name: str, number: int) -> dict[str, object]:
    return {"type": "function", "id": f"call{number:05}", "function": {"name": name, "arguments": _GIVEN}}


def tools_text(tools: str) -> str:
    """Definitions of functions (`Message.tools`) in the words of Hermes."""
    definitions = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in json.loads(tools))
    return (
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{definitions}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def in_plain_turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A conversation in which calls are words of the assistant, and results words of the user."""
    plain: list[Message] = []
    for message in messages:
        if message.role == "tool":
            words = f"<tool_response>\n{message.content}\n</tool_response>"
            if plain and plain[-1].role == "user" and plain[-1].name == "tool":  # results of one answer's calls
                plain[-1] = replace(plain[-1], content=f"{plain[-1].content}\n{words}")
                continue
            message = Message("user", words, name="tool")
        elif message.calls:
            calls = [_written(call) for call in cast("list[dict[str, object]]", json.loads(message.calls))]
            words = HERMES.opening + HERMES.between.join(calls) + HERMES.closing
            message = Message("assistant", f"{message.content}\n{words}" if message.content else words)
        plain.append(replace(message, tools=""))
    return tuple(replace(message, name="") for message in plain)


def _written(call: dict[str, object]) -> str:
    function = cast("dict[str, object]", call["function"])
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return f"{HERMES.before_arguments(str(function['name']))}{arguments}}}"
