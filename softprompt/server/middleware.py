"""Request middleware: request id, Host check, response headers, unexpected errors, access log and request count."""

from __future__ import annotations

import re
import time
import traceback
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softprompt.server.error_responses import ApiError, internal
from softprompt.server.metrics import ServerMetrics

log = structlog.get_logger("softprompt.server")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
SECURITY_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def error_response(error: ApiError) -> JSONResponse:
    """The HTTP response of an error."""
    return JSONResponse(error.body, error.status, error.headers)


class RequestMiddleware:
    """ASGI middleware around the whole application.

    Args:
        hosts: accepted names in the Host header; empty accepts any.
        log_content: log the messages of unexpected errors, which may hold a client's text.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, hosts: frozenset[str], log_content: bool) -> None:
        self._app, self._metrics = app, metrics
        self._hosts, self._log_content = hosts, log_content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; only HTTP and lifespan events reach the application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        opened, headers = time.monotonic(), Headers(scope=scope)
        status = 0
        request_id = headers.get("x-request-id", "")
        request_id = request_id if REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex
        log_fields: dict[str, object] = {}
        scope.setdefault("state", {}).update(request_id=request_id, opened=opened, log_fields=log_fields)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update({**SECURITY_HEADERS, "x-request-id": request_id})
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                if self._hosts and _host(headers.get("host", "")) not in self._hosts:
                    raise ApiError(400, "This server has another name.", "unknown_host")
                await self._app(scope, receive, sending)
            except ApiError as error:
                if status:  # the response has begun, so it cannot become an error
                    log_fields["broke"] = error.code
                else:
                    await error_response(error)(scope, receive, sending)
            except Exception as error:
                self._log_fault(error)
                if not status:
                    await error_response(internal(request_id))(scope, receive, sending)
            self._log_request(scope, status, time.monotonic() - opened, log_fields)

    def _log_request(self, scope: Scope, status: int, seconds: float, log_fields: dict[str, object]) -> None:
        route = getattr(scope.get("route"), "path", "other")  # the template, never what a client sent
        self._metrics.http.labels(route, str(status)).inc()
        log.info("request", method=scope["method"], route=route, status=status, seconds=round(seconds, 4), **log_fields)

    def _log_fault(self, error: Exception) -> None:
        where = "".join(traceback.format_tb(error.__traceback__))
        message = {"message": str(error)} if self._log_content else {}
        log.error("fault", error=type(error).__name__, traceback=where, **message)


def _host(header: str) -> str:
    """The name without the port; an IPv6 address keeps its brackets."""
    return header.lower() if header.endswith("]") else header.lower().rpartition(":")[0] or header.lower()
