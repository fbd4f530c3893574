"""Cancels work when a client disconnects or a deadline passes, and streams server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from softprompt.server.error_responses import ApiError

FINAL_EVENT_S = 1.0  # seconds to send the error event to a client that reads slowly
DONE = b"data: [DONE]\n\n"
_T = TypeVar("_T")


class ClientGoneError(ApiError):
    """The client has closed the connection, so nobody reads the response."""

    def __init__(self) -> None:
        super().__init__(499, "The client has closed the connection.", "client_gone")


async def cancel_on_disconnect(receive: Receive, deadline: float, work: Coroutine[object, object, _T]) -> _T:
    """The result of `work`. Whenever this raises, `work` has been cancelled and has ended.

    Args:
        receive: the request's ASGI channel; its body has been read.
        deadline: on the event loop's clock.

    Raises:
        ClientGoneError: the client disconnected first.
        ApiError: 504, the deadline passed first.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        timeout = max(0.0, deadline - asyncio.get_running_loop().time())
        await asyncio.wait({task, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGoneError
        raise ApiError(504, "The request took too long.", "deadline_exceeded")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events as JSON, followed by [DONE]. An error during the stream becomes the last event.

    Create it with `begin`, so that an error before the first event is a response with its own status.
    """

    media_type = "text/event-stream"

    def __init__(
        self, first: Mapping[str, object], events: AsyncGenerator[Mapping[str, object], None], deadline: float
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._first, self._events = first, events
        self._deadline = deadline

    @classmethod
    async def begin(
        cls, receive: Receive, events: AsyncGenerator[Mapping[str, object], None], deadline: float
    ) -> EventStream:
        """Wait for the first event. Raises its errors and those of `cancel_on_disconnect`."""
        return cls(await cancel_on_disconnect(receive, deadline, _next(events)), events, deadline)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events; their generator is closed in any case."""
        try:
            await cancel_on_disconnect(receive, self._deadline, self._send(send))
        except ClientGoneError:
            raise
        except ApiError as error:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FINAL_EVENT_S):
                    await _send_part(send, _event(error.body) + DONE)
                    await send({"type": "http.response.body", "body": b""})
        finally:
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await _send_part(send, _event(self._first))
        async for event in self._events:
            await _send_part(send, _event(event))
        await _send_part(send, DONE)
        await send({"type": "http.response.body", "body": b""})


async def _next(events: AsyncGenerator[_T, None]) -> _T:
    return await anext(events)


async def _send_part(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _event(content: Mapping[str, object]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"
