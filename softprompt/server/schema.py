"""Request bodies, with the fields of OpenAI's API and vLLM's additional sampling fields.

Unsupported fields that would change the answer are refused. Fields without effect are ignored. Unknown fields are
refused with a suggestion. No field holds a template, a path, a URL or a tensor.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, JsonValue, ValidationError

from softprompt.server.error_responses import SHOWN_CHARS, ApiError, invalid, shown_value
from softprompt.server.strict import Strict
from softprompt.server.structured_output import StructuredFields
from softprompt.server.tools import FunctionDefinition, Tool, ToolFields

# Fields without effect here: bookkeeping, hints and billing. A header of the response names them.
IGNORED = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
# Unsupported fields, with the values that are accepted because they do not change the answer.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),  # of a conversation
    "chat_template": (),
    "chat_template_kwargs": ({},),  # of a text
    "echo": (False,),  # of a conversation
    "modalities": (["text"],),
    "prompt_embeds": (),
    "reasoning_effort": ("none",),  # of a text
    "stop_token_ids": ([],),
    "suffix": ("",),
    "use_beam_search": (False,),
    "web_search_options": (),
}

Number = Annotated[float, Field(allow_inf_nan=False)]
Tokens = Annotated[list[int], Field(min_length=1)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class StreamOptions(Strict):
    """Additional content of a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # of vLLM: the usage so far in every event
    include_obfuscation: bool | None = None  # of OpenAI: padding against eavesdroppers; nothing is padded here


class TextPart(Strict):
    """A text part of a turn's content."""

    type: Literal["text"]
    text: str


class MadeCall(Strict):
    """The function of a call that was made; the last field is what OpenAI's client adds."""

    name: str
    arguments: str
    parsed_arguments: object = None


class TurnCall(Strict):
    """A call that was made in a turn, as this server's answers have it."""

    function: MadeCall
    id: str | None = None
    type: Literal["function"] | None = None
    index: int | None = None


class Turn(Strict):
    """One turn of a conversation.

    The last fields are empty in this server's answers, which clients send back whole.
    """

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[TurnCall] | None = None
    tool_call_id: str | None = None
    function_call: MadeCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: None = None
    audio: None = None
    annotations: Annotated[list[object], Field(max_length=0)] | None = None
    parsed: object = None  # what OpenAI's client adds

    @property
    def text(self) -> str:
        """The words."""
        return "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""

    @property
    def calls(self) -> list[MadeCall]:
        """The calls, also those of the older field."""
        old = [] if self.function_call is None else [self.function_call]
        return [call.function for call in self.tool_calls or ()] + old


class GenerationFields(StructuredFields):
    """Fields common to chat and completion requests."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    repetition_penalty: Number | None = Field(None, ge=0.01, le=2)
    min_p: Number | None = Field(None, ge=0, le=1)
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    logit_bias: dict[TokenId, Bias] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every event of a stream has the usage so far."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class ChatRequest(GenerationFields, ToolFields):
    """Body of POST /v1/chat/completions."""

    messages: list[Turn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = Field(None, max_length=16)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    prompt_logprobs: int | None = Field(None, ge=0)


class CompletionRequest(GenerationFields):
    """Body of POST /v1/completions."""

    prompt: str | list[str] | Tokens | list[Tokens]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1)
    prompt_logprobs: int | None = Field(None, ge=0)


RequestType = TypeVar("RequestType", ChatRequest, CompletionRequest)
_Body = TypeVar("_Body", bound=BaseModel)

_PARTS = (Turn, StreamOptions, TextPart, TurnCall, MadeCall, Tool, FunctionDefinition)


def parse_request(kind: type[RequestType], body: Mapping[str, object]) -> RequestType:
    """Validate a JSON body. Raises ApiError 400 with the name of the invalid field."""
    neutral = NEUTRAL.keys() - kind.model_fields.keys()
    for name in sorted(body.keys() & neutral):
        if body[name] is not None and body[name] not in NEUTRAL[name]:
            raise ApiError(400, f"{name} is not supported.", "unsupported_parameter", param=name)
    request = validated(kind, {name: body[name] for name in body if name not in IGNORED and name not in neutral})
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options goes with stream: true.", "stream_options")
    if isinstance(request, CompletionRequest) and request.best_of is not None:
        _check_best_of(request.best_of, request.n or 1, bool(request.stream))
    if request.prompt_logprobs is not None and request.stream:
        raise invalid("prompt_logprobs does not go with stream: true; echo with logprobs does.", "prompt_logprobs")
    return request


def validated(kind: type[_Body], body: Mapping[str, object], parts: Sequence[type[BaseModel]] = _PARTS) -> _Body:
    """The body as an object. Raises ApiError 400 with the name of the invalid field.

    Args:
        parts: the models within it, whose fields are named in errors.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _from_validation(error, kind, parts) from error


def ignored_fields(body: Mapping[str, object]) -> list[str]:
    """The fields of a body that have no effect."""
    return sorted(name for name in body.keys() & IGNORED if body[name] is not None)


def _check_best_of(best_of: int, n: int, stream: bool) -> None:
    if best_of < n:
        raise invalid("best_of is at least n.", "best_of")
    if stream and best_of > n:
        raise invalid("best_of above n does not go with stream: true: the best are known at the end.", "best_of")


def _from_validation(error: ValidationError, kind: type[BaseModel], parts: Sequence[type[BaseModel]]) -> ApiError:
    """The deepest of pydantic's errors, since each arm of a union reports one of its own."""
    deepest = max(
        error.errors(include_url=False, include_input=False, include_context=False), key=lambda e: len(e["loc"])
    )
    unknown = deepest["type"] == "extra_forbidden"
    param = _path(deepest["loc"], unknown, parts)[:SHOWN_CHARS]
    if not unknown:
        return invalid(f"{param}: {deepest['msg']}", param)
    near = difflib.get_close_matches(param, kind.model_fields, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return ApiError(400, f"Unknown field {shown_value(param)}.{meant}", "unknown_parameter", param=param)


def _path(location: Sequence[int | str], to_the_end: bool, parts: Sequence[type[BaseModel]]) -> str:
    """`messages[0].content` of a pydantic location, without the names it gives to the arms of unions."""
    fields = {name for part in parts for name in part.model_fields}
    path = ""
    for i, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif i == 0 or part in fields or (to_the_end and i == len(location) - 1):
            path += f".{part}" if path else part
    return path
