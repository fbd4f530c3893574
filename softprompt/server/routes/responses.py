"""Routes /v1/responses, OpenAI's newer API without its stored state."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.server.body import read_object
from softprompt.server.error_responses import ApiError
from softprompt.server.generation_stream import EventStream
from softprompt.server.openapi import request_body, responses
from softprompt.server.request import GenerationRequest
from softprompt.server.responses_reply import ModelResponse, ResponseWriter
from softprompt.server.responses_request import ResponsesRequest, parse_responses, responses_generation
from softprompt.server.routes.generation import answer_pieces, name_ignored
from softprompt.server.schema import ignored_fields
from softprompt.server.service import Service

ECHOED = {"metadata", "user"}  # fields that come back in the response


def add_responses(app: FastAPI, service: Service, log_content: bool) -> None:
    """Add the routes; `log_content` logs texts and answers."""

    @app.post(
        "/v1/responses",
        responses=responses(ModelResponse, stream=True),
        openapi_extra=request_body(ResponsesRequest),
    )
    async def respond(request: Request) -> Response:
        """Answer a conversation of items."""
        return await _ResponseCall(service, request, log_content).reply()

    @app.get("/v1/responses/{response}", responses=responses(ModelResponse))
    @app.delete("/v1/responses/{response}", responses=responses(ModelResponse))
    @app.post("/v1/responses/{response}/cancel", responses=responses(ModelResponse))
    @app.get("/v1/responses/{response}/input_items", responses=responses(ModelResponse))
    async def stored(response: str) -> Response:
        """Refused: nothing is stored."""
        raise ApiError(404, "Responses are not stored on this server.", "response_not_found", param="response_id")


class _ResponseCall:
    """One HTTP request and its response."""

    def __init__(self, service: Service, request: Request, log_content: bool) -> None:
        self._service, self._request = service, request
        self._log_content = log_content

    async def reply(self) -> Response:
        """The complete response, or a stream of its events. Raises ApiError."""
        limits, interruptions = self._service.limits, self._service.interruptions(self._request.receive)
        body = await read_object(self._request, limits)
        fields = parse_responses(body)
        generation = replace(responses_generation(fields, limits), caller=self._request.state.caller)
        unstored = ["store"] if body.get("store") in (None, True) else []
        name_ignored(self._request, sorted({*ignored_fields(body), *unstored} - ECHOED))
        if self._log_content:
            self._request.state.log_fields["content"] = body
        if fields.stream:
            events = self._events(generation, fields, body)
            return await EventStream.begin(events, interruptions, limits.keep_alive_s, named=True)
        return JSONResponse(await interruptions.run(self._whole(generation, fields, body)))

    async def _whole(
        self, generation: GenerationRequest, fields: ResponsesRequest, body: Mapping[str, object]
    ) -> dict[str, object]:
        service = self._service
        with service.rate_limit.request(self._request.state.caller):
            async with service.working(generation) as work:
                name_ignored(self._request, work.ignored)
                writer = ResponseWriter(work, fields, body)
                pieces = answer_pieces(service, self._request, generation, work, self._log_content)
                async with aclosing(pieces):
                    async for piece in pieces:
                        writer.add(piece)
        return writer.response

    async def _events(
        self, generation: GenerationRequest, fields: ResponsesRequest, body: Mapping[str, object]
    ) -> AsyncGenerator[dict[str, object], None]:
        service = self._service
        with service.rate_limit.request(self._request.state.caller):
            async with service.working(generation) as work:
                name_ignored(self._request, work.ignored)
                writer = ResponseWriter(work, fields, body)
                opening = writer.opening()
                pieces = answer_pieces(service, self._request, generation, work, self._log_content)
                async with aclosing(pieces):
                    async for piece in pieces:  # errors before the first piece are responses with their own status
                        for event in [*opening, *writer.add(piece)]:
                            yield event
                        opening = []
