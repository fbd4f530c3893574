"""Work for a client that may go away or wait too long, and streams of server-sent events for such clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from softprompt.server.error_responses import ApiError

FINAL_EVENT_S = 1.0  # for a client that does not read
DONE = b"data: [DONE]\n\n"
_T = TypeVar("_T")


class ClientGoneError(ApiError):
    """The client has closed the connection; no one reads the reply."""

    def __init__(self) -> None:
        super().__init__(499, "The client has closed the connection.", "client_gone")


async def cancel_on_disconnect(receive: Receive, deadline: float, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which is cancelled, and has ended, before this raises.

    Args:
        receive: of the request, whose body was read already.
        deadline: by the event loop's clock.

    Raises:
        ClientGoneError: the client went away first.
        ProblemError: 504, the deadline came first.
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
    """Server-sent events as JSON, [DONE] behind them; an error on the way is the last event.

    Use `begin`, so that what goes wrong before the first event has a status of its own.
    """

    media_type = "text/event-stream"

    def __init__(
        self, first: Mapping[str, Any], events: AsyncGenerator[Mapping[str, Any], None], deadline: float
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._first, self._events, self._deadline = first, events, deadline

    @classmethod
    async def begin(
        cls, receive: Receive, events: AsyncGenerator[Mapping[str, Any], None], deadline: float
    ) -> EventStream:
        """Wait for the first event. Raises what it raises, or what `attended` does."""
        return cls(await cancel_on_disconnect(receive, deadline, _next(events)), events, deadline)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all; the events are closed in any case."""
        try:
            await cancel_on_disconnect(receive, self._deadline, self._send(send))
        except ClientGoneError:
            raise
        except ApiError as problem:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FINAL_EVENT_S):
                    await _send_part(send, _event(problem.body) + DONE)
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


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"
