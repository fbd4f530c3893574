"""The turns of a chat request as messages for chat templates: calls as objects, results with the names of functions."""

from __future__ import annotations

import json
from collections.abc import Sequence

from softprompt.data.records import Message
from softprompt.server.error_responses import ApiError, invalid
from softprompt.server.schema import Turn


def read_messages(turns: Sequence[Turn]) -> list[Message]:
    """The turns. A developer's turn is a system turn, and names of speakers are ignored.

    Raises ApiError for a call or a result in a turn that cannot have one, and for calls whose arguments are no object.
    """
    names: dict[str, str] = {}  # of functions, by their calls' ids
    messages = list[Message]()
    for i, turn in enumerate(turns):
        _check(turn, f"messages[{i}]")
        names |= {call.id: call.function.name for call in turn.tool_calls or () if call.id is not None}
        if turn.role in ("tool", "function"):
            call_id = turn.tool_call_id or ""
            messages.append(Message("tool", turn.text, name=turn.name or names.get(call_id, ""), call_id=call_id))
        else:
            role = "system" if turn.role == "developer" else turn.role
            messages.append(Message(role, turn.text, _calls(turn, f"messages[{i}]")))
    return messages


def thoughts(turns: Sequence[Turn]) -> list[str]:
    """For each turn the thought before its words, or ""."""
    return [turn.reasoning_content or turn.reasoning or "" if turn.role == "assistant" else "" for turn in turns]


def _check(turn: Turn, where: str) -> None:
    """Raise ApiError for fields that do not go with the role."""
    calls = [name for name in ("tool_calls", "function_call") if getattr(turn, name)]
    if calls and turn.role != "assistant":
        raise _misplaced(f"{where}.{calls[0]}", "the assistant")
    if turn.tool_call_id is not None and turn.role != "tool":
        raise _misplaced(f"{where}.tool_call_id", "a tool")
    if turn.content is None and not calls:
        raise invalid(f"{where}.content: a turn has words, or calls of the assistant.", f"{where}.content")


def _misplaced(param: str, whose: str) -> ApiError:
    return invalid(f"{param} goes with a turn of {whose}.", param)


def _calls(turn: Turn, where: str) -> str:
    """The calls as chat templates read them, as JSON; "" for none."""
    ids = [call.id for call in turn.tool_calls or ()]
    written = list[dict[str, object]]()
    for i, call in enumerate(turn.calls):
        try:
            arguments = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            param = f"{where}.tool_calls[{i}].function.arguments"
            raise invalid(f"{param}: the arguments of a call are the JSON of an object.", param)
        own: dict[str, object] = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
        written.append(own | ({"id": ids[i]} if i < len(ids) and ids[i] else {}))
    return json.dumps(written, ensure_ascii=False) if written else ""
