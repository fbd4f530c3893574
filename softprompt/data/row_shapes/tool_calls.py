"""Function calls in conversations, in the spellings of OpenAI, ShareGPT and their kin, as chat templates read them.

{"tool_calls": [{"id": "1", "type": "function", "function": {"name": "time", "arguments": "{\\"city\\": \\"Rome\\"}"}}]}
{"function_call": {"name": "time", "arguments": "{}"}}
{"from": "function_call", "value": "{\\"name\\": \\"time\\", \\"arguments\\": {}}"}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import cast

from softprompt.errors import DataError

__all__ = ["calls_of", "tools_of"]

Fail = Callable[[str, object], DataError]  # makes the error from a message and the value it is about


def calls_of(turn: Mapping[str, object], fail: Fail) -> str:
    """The calls of an assistant's turn as JSON, arguments as objects; "" if there are none. Raises DataError."""
    calls: object = turn.get("tool_calls")
    if not calls and turn.get("function_call"):
        calls = [turn["function_call"]]
    if not calls and turn.get("from") == "function_call":
        said = _read(turn.get("value"), "the function call", fail)
        calls = _as_list(said)
    if not calls:
        return ""
    return json.dumps([_call(call, fail) for call in _list(calls, "the tool calls", fail)], ensure_ascii=False)


def tools_of(value: object, fail: Fail) -> str:
    """The definitions of a row's functions as JSON, each as {"type": "function", "function": {…}}; "" for none.

    Raises DataError for what defines no functions.
    """
    if not value:
        return ""
    tools = _list(value, "the tool definitions ('tools')", fail)
    return json.dumps([_tool(tool, fail) for tool in tools], ensure_ascii=False)


def _call(value: object, fail: Fail) -> dict[str, object]:
    call = _named(value, "a tool call", fail)
    function = cast(Mapping[str, object], call["function"])
    arguments = _read(function.get("arguments", function.get("parameters", {})), "the arguments", fail)
    if not _is_object(arguments):
        raise fail("the arguments of a tool call must be an object", arguments)
    written: dict[str, object] = {"type": "function"}
    if isinstance(call.get("id"), str):
        written["id"] = call["id"]
    return written | {"function": {"name": function["name"], "arguments": _fields(arguments)}}


def _tool(value: object, fail: Fail) -> dict[str, object]:
    tool = _named(value, "a tool definition", fail)
    return {"type": "function", "function": tool["function"]}


def _named(value: object, what: str, fail: Fail) -> Mapping[str, object]:
    """With the function under "function"; it must have a name."""
    found = _fields(value)
    function = found if "name" in found and "function" not in found else _fields(found.get("function"))
    if not isinstance(function.get("name"), str):
        raise fail(f"{what} must name its function", value)
    return {**found, "function": function}


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _fields(value: object) -> Mapping[str, object]:
    return cast(Mapping[str, object], value) if isinstance(value, Mapping) else dict[str, object]()


def _as_list(value: object) -> list[object]:
    """The list, or a list of the one value."""
    return cast(list[object], value) if isinstance(value, list) else [value]


def _list(value: object, what: str, fail: Fail) -> list[object]:
    found = _read(value, what, fail)
    if not isinstance(found, list):
        raise fail(f"{what} must be a list", found)
    return cast(list[object], found)


def _read(value: object, what: str, fail: Fail) -> object:
    """The value, or what its JSON text says: data sets keep nested values as text."""
    if not isinstance(value, str):
        return value
    try:
        return cast(object, json.loads(value or "{}"))
    except ValueError as error:
        raise fail(f"{what} must be JSON", value) from error
