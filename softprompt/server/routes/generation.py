"""/v1/chat/completions and /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.server.body import read_object
from softprompt.server.generation_stream import EventStream, cancel_on_disconnect
from softprompt.server.limits import Limits
from softprompt.server.openapi import request_body, responses
from softprompt.server.request import GenerationRequest, chat_request, completion_request
from softprompt.server.responses import ChatCompletion, FullResponse, ResponseBuilder, TextCompletion
from softprompt.server.schema import ChatRequest, CompletionRequest, RequestType, parse_request
from softprompt.server.service import PreparedRequest, Service
from softprompt.server.streaming import TextPiece


def add_generation(app: FastAPI, service: Service, log_content: bool) -> None:
    """Add the two routes; with `log_content` texts and answers go to the log."""

    @app.post(
        "/v1/chat/completions",
        responses=responses(ChatCompletion, stream=True),
        openapi_extra=request_body(ChatRequest),
    )
    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        return await _Answering(service, request, log_content).reply(ChatRequest, chat_request)

    @app.post(
        "/v1/completions",
        responses=responses(TextCompletion, stream=True),
        openapi_extra=request_body(CompletionRequest),
    )
    async def complete(request: Request) -> Response:
        """Continue a text."""
        return await _Answering(service, request, log_content).reply(CompletionRequest, completion_request)


class _Answering:
    """One HTTP request on its way to its answer; `facts` go to its line in the log."""

    def __init__(self, service: Service, request: Request, log_content: bool) -> None:
        self._service, self._request, self._log_content = service, request, log_content
        self._begun: float = request.state.opened
        self._facts: dict[str, Any] = request.state.facts

    async def reply(
        self, kind: type[RequestType], ask_of: Callable[[RequestType, Limits], GenerationRequest]
    ) -> Response:
        """The whole answer, or the beginning of a stream. Raises ProblemError."""
        limits, receive = self._service.limits, self._request.receive
        deadline = asyncio.get_running_loop().time() + limits.deadline_s
        body = await read_object(self._request, limits)
        asked = parse_request(kind, body)
        ask = replace(ask_of(asked, limits), tenant=self._request.state.caller.id)
        if self._log_content:
            self._facts["content"] = body
        chat = kind is ChatRequest
        if asked.stream:
            return await EventStream.begin(receive, self._events(ask, chat, asked.include_usage), deadline)
        return JSONResponse(await cancel_on_disconnect(receive, deadline, self._whole(ask, chat)))

    async def _whole(self, ask: GenerationRequest, chat: bool) -> dict[str, Any]:
        with self._service.quota.request(self._request.state.caller):
            async with self._service.working(ask) as work, aclosing(self._pieces(ask, work)) as pieces:
                answers, tokens = [FullResponse() for _ in work.jobs], 0
                async for piece in pieces:
                    answers[piece.choice].add(piece)
                    tokens += piece.tokens
        return ResponseBuilder(work, ask.model, chat=chat, logprobs=ask.logprobs is not None).whole(answers, tokens)

    async def _events(self, ask: GenerationRequest, chat: bool, usage: bool) -> AsyncGenerator[dict[str, Any], None]:
        with self._service.quota.request(self._request.state.caller):
            async with self._service.working(ask) as work, aclosing(self._pieces(ask, work)) as pieces:
                replies = ResponseBuilder(work, ask.model, chat=chat, logprobs=ask.logprobs is not None)
                opening, tokens = replies.opening(), 0
                async for piece in pieces:  # the opening waits for it: what fails before has a status of its own
                    while opening:
                        yield opening.pop(0)
                    tokens += piece.tokens
                    yield replies.chunk(piece)
            if usage:
                yield replies.closing(tokens)

    async def _pieces(self, ask: GenerationRequest, work: PreparedRequest) -> AsyncGenerator[TextPiece, None]:
        """The pieces of the answers, noted for the log."""
        finished, texts, tokens = list[str](), [""] * len(work.jobs), 0
        try:
            async with aclosing(self._service.answers(work, self._begun)) as pieces:
                async for piece in pieces:
                    tokens += piece.tokens
                    finished += [piece.finish] if piece.finish else []
                    if self._log_content:
                        texts[piece.choice] += piece.text
                    yield piece
        finally:
            self._facts |= {"model": ask.model, "prompt_tokens": work.prompt_tokens, "tokens": tokens}
            self._facts |= {"finished": finished} | ({"answers": texts} if self._log_content else {})
