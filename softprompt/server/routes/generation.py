"""Routes /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

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
    """Add the two routes; `log_content` logs texts and answers."""

    @app.post(
        "/v1/chat/completions",
        responses=responses(ChatCompletion, stream=True),
        openapi_extra=request_body(ChatRequest),
    )
    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        return await _GenerationCall(service, request, log_content).reply(ChatRequest, chat_request)

    @app.post(
        "/v1/completions",
        responses=responses(TextCompletion, stream=True),
        openapi_extra=request_body(CompletionRequest),
    )
    async def complete(request: Request) -> Response:
        """Continue a text."""
        return await _GenerationCall(service, request, log_content).reply(CompletionRequest, completion_request)


class _GenerationCall:
    """One HTTP request and its response."""

    def __init__(self, service: Service, request: Request, log_content: bool) -> None:
        self._service, self._request = service, request
        self._log_content = log_content
        self._opened: float = request.state.opened
        self._log_fields: dict[str, object] = request.state.log_fields

    async def reply(
        self, kind: type[RequestType], convert: Callable[[RequestType, Limits], GenerationRequest]
    ) -> Response:
        """The complete answer, or a stream. Raises ApiError."""
        limits, receive = self._service.limits, self._request.receive
        deadline = asyncio.get_running_loop().time() + limits.deadline_s
        body = await read_object(self._request, limits)
        fields = parse_request(kind, body)
        generation = replace(convert(fields, limits), tenant=self._request.state.caller.id)
        if self._log_content:
            self._log_fields["content"] = body
        chat = kind is ChatRequest
        if fields.stream:
            return await EventStream.begin(receive, self._events(generation, chat, fields.include_usage), deadline)
        return JSONResponse(await cancel_on_disconnect(receive, deadline, self._whole(generation, chat)))

    async def _whole(self, generation: GenerationRequest, chat: bool) -> dict[str, object]:
        with self._service.rate_limit.request(self._request.state.caller):
            async with self._service.working(generation) as work, aclosing(self._pieces(generation, work)) as pieces:
                answers, tokens = [FullResponse() for _ in work.jobs], 0
                async for piece in pieces:
                    answers[piece.choice].add(piece)
                    tokens += piece.tokens
        return ResponseBuilder(work, generation.model, chat=chat, logprobs=generation.logprobs is not None).whole(
            answers, tokens
        )

    async def _events(
        self, generation: GenerationRequest, chat: bool, usage: bool
    ) -> AsyncGenerator[dict[str, object], None]:
        with self._service.rate_limit.request(self._request.state.caller):
            async with self._service.working(generation) as work, aclosing(self._pieces(generation, work)) as pieces:
                replies = ResponseBuilder(work, generation.model, chat=chat, logprobs=generation.logprobs is not None)
                opening, tokens = replies.opening(), 0
                async for piece in pieces:  # errors before the first piece are responses with their own status
                    while opening:
                        yield opening.pop(0)
                    tokens += piece.tokens
                    yield replies.chunk(piece)
            if usage:
                yield replies.closing(tokens)

    async def _pieces(self, generation: GenerationRequest, work: PreparedRequest) -> AsyncGenerator[TextPiece, None]:
        """Pieces of the answers; token counts go to the access log."""
        finished, tokens = list[str](), 0
        texts = [""] * len(work.jobs)
        try:
            async with aclosing(self._service.answers(work, self._opened)) as pieces:
                async for piece in pieces:
                    tokens += piece.tokens
                    finished += [piece.finish] if piece.finish else []
                    if self._log_content:
                        texts[piece.choice] += piece.text
                    yield piece
        finally:
            self._log_fields |= {"model": generation.model, "prompt_tokens": work.prompt_tokens, "tokens": tokens}
            self._log_fields |= {"finished": finished} | ({"answers": texts} if self._log_content else {})
