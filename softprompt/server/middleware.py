"""Middleware around all routes: request ids, headers of responses and the access log; errors and the Host check."""

from __future__ import annotations

import asyncio
import re
import time
import traceback
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softprompt.server.error_responses import ApiError, internal, shown_value, stopping
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
    """The outermost ASGI middleware: request id, headers of responses, access log and request count."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; only HTTP and lifespan events reach the application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        opened, status = time.monotonic(), 0
        request_id = Headers(scope=scope).get("x-request-id", "")
        request_id = request_id if REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex
        log_fields: dict[str, object] = {}
        headers: dict[str, str] = {**SECURITY_HEADERS, "x-request-id": request_id}
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, opened=opened, log_fields=log_fields, headers=headers)
        scope["path"] = scope["path"].rstrip("/") or "/"

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(headers)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, sending)
            self._log_request(scope, status, time.monotonic() - opened, log_fields)

    def _log_request(self, scope: Scope, status: int, seconds: float, log_fields: dict[str, object]) -> None:
        route = getattr(scope.get("route"), "path", "other")  # the template, never what a client sent
        self._metrics.http.labels(route, str(status)).inc()
        log.info("request", method=scope["method"], route=route, status=status, seconds=round(seconds, 4), **log_fields)


class ErrorMiddleware:
    """ASGI middleware that turns errors into responses, also that of a Host header that is not this server's.

    It stands within the cross-origin middleware, so that web pages can read its responses, too.

    Args:
        hosts: accepted names in the Host header; empty accepts any.
        log_content: log the messages of unexpected errors, which may hold a client's text.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], log_content: bool) -> None:
        self._app, self._hosts = app, hosts
        self._log_content = log_content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; what is cut off when the server ends says so, too."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        error = await self._error_of(scope, receive, sending)
        if error is None:
            return
        if started:  # the response has begun, so it cannot become an error
            scope["state"]["log_fields"]["broke"] = error.code
        else:
            await error_response(error)(scope, receive, sending)

    async def _error_of(self, scope: Scope, receive: Receive, send: Send) -> ApiError | None:
        try:
            self._check_host(Headers(scope=scope).get("host", ""))
            await self._app(scope, receive, send)
        except ApiError as error:
            return error
        except asyncio.CancelledError:  # uvicorn cancels what outlives it, and nobody else does
            return stopping()
        except Exception as error:
            self._log_fault(error)
            return internal(scope["state"]["request_id"])
        return None

    def _check_host(self, header: str) -> None:
        name = _host(header)
        if self._hosts and name not in self._hosts:
            shown = shown_value(name)
            message = f"This server does not answer to the host {shown}. Its operator can: --allow-host {shown}."
            raise ApiError(400, message, "unknown_host")

    def _log_fault(self, error: Exception) -> None:
        where = "".join(traceback.format_tb(error.__traceback__))
        message = {"message": str(error)} if self._log_content else {}
        log.error("fault", error=type(error).__name__, traceback=where, **message)


def _host(header: str) -> str:
    """The name without the port; an IPv6 address keeps its brackets."""
    return header.lower() if header.endswith("]") else header.lower().rpartition(":")[0] or header.lower()
