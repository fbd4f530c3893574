"""Routes /v1/chat/completions and /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.server.body import read_object
from softprompt.server.generation_stream import EventStream
from softprompt.server.limits import Limits
from softprompt.server.openapi import request_body, responses
from softprompt.server.prepared import PreparedRequest
from softprompt.server.request import GenerationRequest, chat_request, completion_request
from softprompt.server.responses import (
    ChatCompletion,
    FullResponse,
    ResponseBuilder,
    TextCompletion,
    UsageCount,
    likeliest,
)
from softprompt.server.schema import ChatRequest, CompletionRequest, RequestType, ignored_fields, parse_request
from softprompt.server.service import Service
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


IGNORED_HEADER = "x-softprompt-ignored"


class _GenerationCall:
    """One HTTP request and its response."""

    def __init__(self, service: Service, request: Request, log_content: bool) -> None:
        self._service, self._request = service, request
        self._log_content = log_content
        self._log_fields: dict[str, object] = request.state.log_fields

    async def reply(
        self, kind: type[RequestType], convert: Callable[[RequestType, Limits], GenerationRequest]
    ) -> Response:
        """The complete answer, or a stream. Raises ApiError."""
        limits, interruptions = self._service.limits, self._service.interruptions(self._request.receive)
        body = await read_object(self._request, limits)
        fields = parse_request(kind, body)
        generation = replace(convert(fields, limits), caller=self._request.state.caller)
        name_ignored(self._request, ignored_fields(body))
        if self._log_content:
            self._log_fields["content"] = body
        chat = kind is ChatRequest
        if fields.stream:
            events = self._events(generation, chat, fields.include_usage, fields.continuous_usage)
            return await EventStream.begin(events, interruptions, limits.keep_alive_s)
        return JSONResponse(await interruptions.run(self._whole(generation, chat)))

    async def _whole(self, generation: GenerationRequest, chat: bool) -> dict[str, object]:
        with self._service.rate_limit.request(self._request.state.caller):
            async with self._service.working(generation) as work, aclosing(self._pieces(generation, work)) as pieces:
                name_ignored(self._request, work.ignored)
                answers, count = [FullResponse() for _ in work.jobs], UsageCount(work)
                async for piece in pieces:
                    answers[piece.choice].add(piece)
                    count.add(piece)
        replies = ResponseBuilder(work, generation.model, chat=chat, logprobs=generation.logprobs is not None)
        return replies.whole(likeliest(answers, generation.made, generation.n), count.usage)

    async def _events(
        self, generation: GenerationRequest, chat: bool, usage: bool, continuous: bool
    ) -> AsyncGenerator[dict[str, object], None]:
        with self._service.rate_limit.request(self._request.state.caller):
            async with self._service.working(generation) as work, aclosing(self._pieces(generation, work)) as pieces:
                name_ignored(self._request, work.ignored)
                logprobs, count = generation.logprobs is not None, UsageCount(work)
                replies = ResponseBuilder(work, generation.model, chat=chat, logprobs=logprobs, usage=usage)
                opening = replies.opening()
                async for piece in pieces:  # errors before the first piece are responses with their own status
                    while opening:
                        yield opening.pop(0)
                    count.add(piece)
                    yield replies.chunk(piece, count.usage if continuous else None)
            if usage:
                yield replies.closing(count.usage)

    def _pieces(self, generation: GenerationRequest, work: PreparedRequest) -> AsyncGenerator[TextPiece, None]:
        return answer_pieces(self._service, self._request, generation, work, self._log_content)


def name_ignored(request: Request, fields: Sequence[str]) -> None:
    """Name fields without effect in a header of the response; one that has begun stays as it is."""
    headers: dict[str, str] = request.state.headers
    named = [*filter(None, headers.get(IGNORED_HEADER, "").split(", ")), *fields]
    if named:
        headers[IGNORED_HEADER] = ", ".join(named)


async def answer_pieces(
    service: Service, request: Request, generation: GenerationRequest, work: PreparedRequest, log_content: bool
) -> AsyncGenerator[TextPiece, None]:
    """Pieces of the answers to an HTTP request; token counts go to the access log."""
    finished, tokens = list[str](), 0
    texts, log_fields = [""] * len(work.jobs), request.state.log_fields
    try:
        async with aclosing(service.answers(work, request.state.opened)) as pieces:
            async for piece in pieces:
                tokens += piece.tokens
                finished += [piece.finish] if piece.finish else []
                if log_content:
                    texts[piece.choice] += piece.text
                yield piece
    finally:
        log_fields |= {"model": generation.model, "prompt_tokens": work.prompt_tokens, "tokens": tokens}
        log_fields |= {"finished": finished} | ({"answers": texts} if log_content else {})
