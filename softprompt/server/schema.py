"""Request bodies, with the fields of OpenAI's API and vLLM's additional sampling fields.

Unsupported fields that would change the answer are refused. Fields without effect are ignored. Unknown fields are
refused with a suggestion. No field holds a template, a path, a URL or a tensor.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from softprompt.data.records import Message
from softprompt.server.error_responses import SHOWN_CHARS, ApiError, invalid, shown_value

# Fields without effect here: bookkeeping, hints and billing.
IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Unsupported fields, with the values that are accepted because they do not change the answer.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prompt_embeds": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}

Number = Annotated[float, Field(allow_inf_nan=False)]
Tokens = Annotated[list[int], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StreamOptions(_Strict):
    """Additional content of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # of OpenAI: padding against eavesdroppers; nothing is padded here


class TextPart(_Strict):
    """A text part of a turn's content."""

    type: Literal["text"]
    text: str


class Turn(_Strict):
    """One turn of a conversation. The last fields are empty in this server's answers, which clients send back whole."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[object], Field(max_length=0)] | None = None
    tool_calls: Annotated[list[object], Field(max_length=0)] | None = None

    @property
    def message(self) -> Message:
        """The turn for a chat template: a developer's turn is a system turn, and names are ignored."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class GenerationFields(_Strict):
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
    repetition_penalty: Number | None = Field(None, gt=0, le=2)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(GenerationFields):
    """Body of POST /v1/chat/completions."""

    messages: list[Turn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)


class CompletionRequest(GenerationFields):
    """Body of POST /v1/completions."""

    prompt: str | list[str] | Tokens | list[Tokens]
    logprobs: int | None = Field(None, ge=0)


RequestType = TypeVar("RequestType", ChatRequest, CompletionRequest)


def parse_request(kind: type[RequestType], body: Mapping[str, object]) -> RequestType:
    """Validate a JSON body. Raises ApiError 400 with the name of the invalid field."""
    for name in sorted(body.keys() & NEUTRAL.keys()):
        if body[name] is not None and body[name] not in NEUTRAL[name]:
            raise ApiError(400, f"{name} is not supported.", "unsupported_parameter", param=name)
    known = {name: value for name, value in body.items() if name not in IGNORED and name not in NEUTRAL}
    try:
        request = kind.model_validate(known)
    except ValidationError as error:
        raise _from_validation(error, kind) from error
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options goes with stream: true.", "stream_options")
    return request


def _from_validation(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    """The deepest of pydantic's errors, since each arm of a union reports one of its own."""
    deepest = max(
        error.errors(include_url=False, include_input=False, include_context=False), key=lambda e: len(e["loc"])
    )
    unknown = deepest["type"] == "extra_forbidden"
    param = _path(deepest["loc"], unknown)[:SHOWN_CHARS]
    if not unknown:
        return invalid(f"{param}: {deepest['msg']}", param)
    near = difflib.get_close_matches(param, kind.model_fields, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return ApiError(400, f"Unknown field {shown_value(param)}.{meant}", "unknown_parameter", param=param)


def _path(location: Sequence[int | str], to_the_end: bool) -> str:
    """`messages[0].content` of a pydantic location, without the names it gives to the arms of unions."""
    fields = {*Turn.model_fields, *StreamOptions.model_fields, *TextPart.model_fields}
    path = ""
    for i, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif i == 0 or part in fields or (to_the_end and i == len(location) - 1):
            path += f".{part}" if path else part
    return path
