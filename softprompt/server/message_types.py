"""Messages in responses, with thoughts and function calls."""

from __future__ import annotations

from typing import Literal, NotRequired  # pydantic reads them, and wants these before Python 3.12

from typing_extensions import TypedDict


class FunctionCall(TypedDict):
    """The function of a call, with its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call of a function."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class FunctionCallDelta(TypedDict):
    """The new part of a call's function: its name comes first, with empty arguments."""

    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """The new part of a call in a stream: its id and type come with the first."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionCallDelta


class AssistantMessage(TypedDict):
    """The answer to a conversation; its content is null where there are calls alone."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    function_call: NotRequired[FunctionCall]


class Delta(TypedDict):
    """The new part of a message in a stream."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallDelta]]
    function_call: NotRequired[FunctionCallDelta]
