"""Body of POST /v1/responses, OpenAI's newer API, and the conversation that it stands for.

Nothing is stored, so a request brings its whole conversation. Items become the turns of a chat request, which the same
checks and limits hold for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from softprompt.server.error_responses import ApiError, invalid
from softprompt.server.limits import Limits
from softprompt.server.request import GenerationRequest, chat_request
from softprompt.server.schema import IGNORED, ChatRequest, Number, parse_request, validated
from softprompt.server.strict import Strict

_UNSTORED = "Nothing is stored here: send the whole conversation in input."
# Fields that need stored state or other services, with what to do instead.
_REFUSED = {
    "previous_response_id": _UNSTORED,
    "conversation": _UNSTORED,
    "background": "Answers are not made in the background: use stream: true.",
    "prompt": "There are no stored prompts: a soft prompt is the model's name.",
    "max_tool_calls": "There are no built-in tools whose calls could be counted.",
    "moderation": "There is no moderation.",
}
_CHAT_FIELDS = ("model", "stream", "temperature", "top_p", "top_k", "seed", "parallel_tool_calls")
LOGPROBS = "message.output_text.logprobs"


class ContentPart(Strict):
    """A text part of an item. The last fields are those of this server's answers, which clients send back whole."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[object] | None = None
    logprobs: list[object] | None = None


class MessageItem(Strict):
    """A turn."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class CallItem(Strict):
    """A function call that an earlier answer made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None
    caller: object = None
    namespace: str | None = None


class CallOutputItem(Strict):
    """What a function has returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[ContentPart]
    id: str | None = None
    status: str | None = None
    caller: object = None


class ReasoningItem(Strict):
    """A thought of an earlier answer. It is not read: chat templates leave earlier thoughts out."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[object] | None = None
    content: list[object] | None = None
    encrypted_content: str | None = None
    status: str | None = None


InputItem = MessageItem | CallItem | CallOutputItem | ReasoningItem


class ResponseTextFormat(Strict):
    """What an answer is written in: text, JSON, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: dict[str, object] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """Options of the text."""

    format: ResponseTextFormat | None = None
    verbosity: str | None = None


class FunctionTool(Strict):
    """A function that an answer may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class ToolChoice(Strict):
    """The function that an answer must call."""

    type: Literal["function"]
    name: str


class ReasoningOptions(Strict):
    """Options of thinking models; summaries of thoughts are not made."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseStreamOptions(Strict):
    """Nothing is padded here."""

    include_obfuscation: bool | None = None


class ResponsesRequest(Strict):
    """Body of POST /v1/responses."""

    model: str
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["disabled"] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = Field(None, ge=0)


def parse_responses(body: Mapping[str, object]) -> ResponsesRequest:
    """Validate a JSON body. Raises ApiError."""
    for name, reason in _REFUSED.items():
        if body.get(name) not in (None, False):
            raise ApiError(400, f"{name} is not supported. {reason}", "unsupported_parameter", param=name)
    _check_kinds(body, "tools", "function", "There are no built-in tools, only functions.")
    _check_kinds(body, "input", "item_reference", _UNSTORED, refused=True)
    left_out = {*IGNORED, *_REFUSED} - {"parallel_tool_calls"}
    request = validated(ResponsesRequest, {name: value for name, value in body.items() if name not in left_out})
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options goes with stream: true.", "stream_options")
    return request


def responses_generation(request: ResponsesRequest, limits: Limits) -> GenerationRequest:
    """The checked request of a body. Raises ApiError for values over the limits."""
    try:
        return chat_request(parse_request(ChatRequest, _chat_body(request)), limits)
    except ApiError as error:
        raise _renamed(error) from error


def _chat_body(request: ResponsesRequest) -> dict[str, object]:
    """The chat request with the same turns and settings."""
    settings = request.model_dump(include=set(_CHAT_FIELDS), exclude_none=True)
    turns = _turns(request)
    body: dict[str, object] = {**settings, "messages": turns, "max_completion_tokens": request.max_output_tokens}
    if LOGPROBS in (request.include or ()) or request.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    if request.tools:
        body["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in request.tools
        ]
    choice = request.tool_choice
    if choice is not None:
        body["tool_choice"] = (
            choice if isinstance(choice, str) else {"type": "function", "function": {"name": choice.name}}
        )
    if request.reasoning is not None and request.reasoning.effort is not None:
        body["reasoning_effort"] = request.reasoning.effort
    if (written := request.text and request.text.format) is not None and written.type != "text":
        body["response_format"] = _response_format(written)
    return body


def _check_kinds(body: Mapping[str, object], field: str, kind: str, reason: str, *, refused: bool = False) -> None:
    """Raise ApiError for parts of a list that are of another type than `kind`, or with `refused` of that type."""
    parts = body.get(field)
    for part in parts if isinstance(parts, list) else ():
        got = part.get("type") if isinstance(part, dict) else None
        if isinstance(got, str) and (got == kind) == refused:
            raise ApiError(
                400, f"{field}: {got[:40]!r} is not supported. {reason}", "unsupported_parameter", param=field
            )


def _turns(request: ResponsesRequest) -> list[dict[str, object]]:
    """The turns. Instructions and the system's first turns are one turn, and so are an answer and its calls."""
    items: Sequence[InputItem] = request.input if not isinstance(request.input, str) else ()
    turns = list[dict[str, object]]()
    if request.instructions:
        turns.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        turns.append({"role": "user", "content": request.input})
    for item in items:
        last = turns[-1] if turns else {}
        if isinstance(item, ReasoningItem):
            continue
        if isinstance(item, CallItem):
            call = {
                "id": item.call_id,
                "type": "function",
                "function": {"name": item.name, "arguments": item.arguments},
            }
            calls = last.get("tool_calls", [])
            if last.get("role") != "assistant" or not isinstance(calls, list):
                last, calls = {"role": "assistant", "content": None}, []
                turns.append(last)
            last["tool_calls"] = [*calls, call]
        elif isinstance(item, CallOutputItem):
            turns.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        elif item.role in ("system", "developer") and [turn["role"] for turn in turns] == ["system"]:
            last["content"] = f"{last['content']}\n\n{_text(item.content)}"
        else:
            role = "system" if item.role == "developer" else item.role
            turns.append({"role": role, "content": _text(item.content)})
    return turns


def _text(content: str | Sequence[ContentPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _response_format(written: ResponseTextFormat) -> dict[str, object]:
    if written.type == "json_object":
        return {"type": "json_object"}
    named = {"name": written.name, "description": written.description, "schema": written.json_schema}
    given = {name: value for name, value in {**named, "strict": written.strict}.items() if value is not None}
    return {"type": "json_schema", "json_schema": given}


def _renamed(error: ApiError) -> ApiError:
    """An error about a chat request's field in the words of this API."""
    names = {"messages": "input", "response_format": "text.format", "max_tokens": "max_output_tokens"}
    param = error.param or ""
    for old, new in names.items():
        if param == old or param.startswith((f"{old}.", f"{old}[")):
            message = error.message.replace(old, new, 1)
            return ApiError(error.status, message, error.code, param=param.replace(old, new, 1))
    return error
