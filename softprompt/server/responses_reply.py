"""Answers as objects and events of OpenAI's newer API, /v1/responses.

A response has items in order: a thought, a message, function calls. Each is announced, grows by deltas and is repeated
when it is complete, and so is the response itself. Every event has the next sequence number.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

from typing_extensions import TypedDict

from softprompt.server.call_text import CallPart
from softprompt.server.prepared import PreparedRequest
from softprompt.server.responses import UsageCount, chat_logprobs
from softprompt.server.responses_request import LOGPROBS, ResponsesRequest
from softprompt.server.streaming import TextPiece

Object = dict[str, object]
_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class ResponseUsage(TypedDict):
    """Token counts, without virtual tokens."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ModelResponse(TypedDict):
    """Response of /v1/responses; its items are those of OpenAI's API."""

    id: str
    object: Literal["response"]
    created_at: float
    completed_at: float | None
    status: Literal["completed", "incomplete", "in_progress"]
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[dict[str, object]]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, object]
    store: Literal[False]
    background: Literal[False]
    temperature: float
    text: dict[str, object]
    tool_choice: str | dict[str, object]
    tools: list[dict[str, object]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    metadata: dict[str, object]
    user: str | None
    service_tier: Literal["default"]


class ResponseWriter:
    """Builds the items of one response from the pieces of its answer.

    Args:
        body: the request's JSON, whose bookkeeping fields come back.
    """

    def __init__(self, work: PreparedRequest, request: ResponsesRequest, body: Mapping[str, object]) -> None:
        self._work, self._request = work, request
        self._logprobs = LOGPROBS in (request.include or ()) or bool(request.top_logprobs)
        self._output = list[Object]()
        self._open: str = ""  # the type of the last item while it grows
        self._text, self._scored = "", list[object]()
        self._events, self._sequence = list[Object](), 0
        self._count = UsageCount(work)
        self._response = self._begun(body)

    def opening(self) -> list[Object]:
        """The events before any text."""
        return [
            self._event("response.created", response=self._copy()),
            self._event("response.in_progress", response=self._copy()),
        ]

    def add(self, piece: TextPiece) -> list[Object]:
        """The events of a piece; with the last one the response is complete."""
        self._events = []
        self._count.add(piece)
        if piece.thought:
            self._grow("reasoning", piece.thought, [])
        if piece.text or (piece.scored and self._open == "message"):
            self._grow("message", piece.text, list(chat_logprobs(piece.scored)["content"]) if self._logprobs else [])
        for part in piece.calls:
            self._add_call(part)
        if piece.finish:
            self._finish(piece.finish)
        return self._events

    @property
    def response(self) -> Object:
        """The response, complete after the last piece."""
        return self._response

    def _begun(self, body: Mapping[str, object]) -> Object:
        request = self._request
        dumped = request.model_dump(by_alias=True, exclude_none=True)
        text: object = dumped.get("text", {})
        options = text if isinstance(text, dict) else {}
        return {
            "id": f"resp_{self._work.id}",
            "object": "response",
            "created_at": float(int(time.time())),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": request.model,
            "output": [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **dumped.get("reasoning", {})},
            "store": False,
            "background": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": {"type": "text"}, **options},
            "tool_choice": dumped.get("tool_choice", "auto"),
            "tools": [{"parameters": None, "strict": None, **tool} for tool in dumped.get("tools", [])],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": body.get("metadata") or {},
            "user": body.get("user"),
            "service_tier": "default",
        }

    def _grow(self, kind: str, text: str, scored: list[object]) -> None:
        """Add text to the last item, or begin one of this type."""
        if self._open != kind:
            self._close("completed")
            self._begin(kind)
        self._text, self._scored = self._text + text, [*self._scored, *scored]
        logprobs: Object = {"logprobs": scored} if kind == "message" else {}
        self._announce(f"response.{_PARTS[kind]}.delta", content_index=0, delta=text, **logprobs)

    def _begin(self, kind: str) -> None:
        """Begin a message or a thought."""
        self._open, self._text = kind, ""
        self._scored = []
        own: Object = {"role": "assistant"} if kind == "message" else {"summary": []}
        self._append({"id": self._new_id(kind), "type": kind, **own, "status": "in_progress", "content": []})
        self._announce("response.content_part.added", content_index=0, part=self._part())

    def _close(self, status: str) -> None:
        """Complete the item that grows, if there is one."""
        if not self._open:
            return
        if self._open == "function_call":
            self._announce("response.function_call_arguments.done", name=self._output[-1]["name"], arguments=self._text)
            self._complete({"status": status, "arguments": self._text})
        else:
            part = self._part()
            logprobs: Object = {"logprobs": self._scored} if self._open == "message" else {}
            self._announce(f"response.{_PARTS[self._open]}.done", content_index=0, text=self._text, **logprobs)
            self._announce("response.content_part.done", content_index=0, part=part)
            self._complete({"status": status, "content": [part]})
        self._open = ""

    def _add_call(self, part: CallPart) -> None:
        """A part of a function call, whose first one begins an item."""
        if part.id:
            self._close("completed")
            self._open, self._text = "function_call", ""
            item: Object = {"id": self._new_id("function_call"), "type": "function_call", "call_id": part.id}
            self._append({**item, "name": part.name, "arguments": "", "status": "in_progress"})
        if part.arguments:
            self._text += part.arguments
            self._announce("response.function_call_arguments.delta", delta=part.arguments)
        if part.is_last:
            self._close("completed")

    def _new_id(self, kind: str) -> str:
        return f"{_PREFIXES[kind]}_{self._work.id}_{len(self._output)}"

    def _append(self, item: Object) -> None:
        self._output.append(item)
        self._announce_item("response.output_item.added")

    def _complete(self, changes: Object) -> None:
        self._output[-1] = self._output[-1] | changes
        self._announce_item("response.output_item.done")

    def _finish(self, finish: str) -> None:
        if not self._output:
            self._begin("message")
        is_cut = finish == "length"
        status = "incomplete" if is_cut else "completed"
        self._close(status)
        details = {"reason": "max_output_tokens"} if is_cut else None
        self._response |= {"status": status, "incomplete_details": details, "output": self._output}
        self._response |= {"usage": self._usage(), "completed_at": None if is_cut else float(int(time.time()))}
        self._events.append(self._event(f"response.{status}", response=self._copy()))

    def _usage(self) -> ResponseUsage:
        usage = self._count.usage
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": self._count.cached, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }

    def _part(self) -> Object:
        part: Object = {"type": _PARTS[self._open], "text": self._text}
        return part | ({"annotations": [], "logprobs": self._scored} if self._open == "message" else {})

    def _announce_item(self, kind: str) -> None:
        self._events.append(self._event(kind, output_index=len(self._output) - 1, item=dict(self._output[-1])))

    def _announce(self, kind: str, **fields: object) -> None:
        where = {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}
        self._events.append(self._event(kind, **where, **fields))

    def _event(self, kind: str, **fields: object) -> Object:
        number, self._sequence = self._sequence, self._sequence + 1
        return {"type": kind, "sequence_number": number, **fields}

    def _copy(self) -> Object:
        return dict(self._response)
