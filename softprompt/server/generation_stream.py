"""Ends work early when a client leaves, a deadline passes or the server stops, and streams server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from dataclasses import dataclass
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from softprompt.server.error_responses import ApiError, stopping

FIRST_EVENT_S = 0.5  # seconds in which an error is a response with its own status; after them a stream begins
FINAL_EVENT_S = 1.0  # seconds to send the error event to a client that reads slowly
DONE = b"data: [DONE]\n\n"
COMMENT = b": waiting\n\n"  # clients skip it; a proxy sees that the connection is alive
_T = TypeVar("_T")


class ClientGoneError(ApiError):
    """The client has closed the connection, so nobody reads the response."""

    def __init__(self) -> None:
        super().__init__(499, "The client has closed the connection.", "client_gone")


@dataclass(frozen=True)
class Interruptions:
    """Events that end a request early.

    Attributes:
        receive: the request's ASGI channel, to see the client leave; its body has been read.
        deadline: on the event loop's clock.
        stopping: set when the server cannot wait any longer.
    """

    receive: Receive
    deadline: float
    stopping: asyncio.Event

    async def run(self, work: Coroutine[object, object, _T]) -> _T:
        """The result of `work`. Whenever this raises, `work` has been cancelled and has ended.

        Raises:
            ClientGoneError: the client disconnected first.
            ApiError: 504, the deadline passed first; 503, the server stopped first.
        """
        task, gone = asyncio.create_task(work), asyncio.create_task(_gone(self.receive))
        stopped = asyncio.create_task(self.stopping.wait())
        try:
            timeout = max(0.0, self.deadline - asyncio.get_running_loop().time())
            await asyncio.wait({task, gone, stopped}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientGoneError
            if stopped.done():
                raise stopping()
            raise ApiError(504, "The request took too long.", "deadline_exceeded")
        finally:
            for one in (task, gone, stopped):
                one.cancel()
            await asyncio.gather(task, gone, stopped, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events as JSON, followed by [DONE]. An error during the stream becomes the last event.

    Create it with `begin`, so that an early error is a response with its own status.

    Args:
        keep_alive_s: seconds without an event after which a comment is sent; 0 sends none.
        named: the events have types, which become their names, and numbers; nothing follows them.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Mapping[str, object], None],
        interruptions: Interruptions,
        keep_alive_s: float,
        named: bool,
    ) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})  # nginx passes each event on at once
        del self.headers["content-length"]
        self._events, self._interruptions = events, interruptions
        self._keep_alive_s, self._sent_at = keep_alive_s, 0.0
        self._named, self._sent = named, 0
        self._first = asyncio.create_task(_next(events))

    @classmethod
    async def begin(
        cls,
        events: AsyncGenerator[Mapping[str, object], None],
        interruptions: Interruptions,
        keep_alive_s: float = 10,
        *,
        named: bool = False,
    ) -> EventStream:
        """Wait up to FIRST_EVENT_S for the first event. Raises its errors and those of `Interruptions.run`."""
        stream = cls(events, interruptions, keep_alive_s, named)
        try:
            await interruptions.run(stream._peek())
        except BaseException:
            await stream._close()
            raise
        return stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events; their generator is closed in any case."""
        try:
            await self._interruptions.run(self._send(send))
        except ClientGoneError:
            raise
        except ApiError as error:
            scope.get("state", {}).get("log_fields", {})["broke"] = error.code
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FINAL_EVENT_S):
                    await self._send_part(send, self._last(error))
                    await send({"type": "http.response.body", "body": b""})
        finally:
            await self._close()

    async def _peek(self) -> None:
        await asyncio.wait({self._first}, timeout=FIRST_EVENT_S)
        if self._first.done():
            self._first.result()

    async def _close(self) -> None:
        self._first.cancel()
        await asyncio.gather(self._first, return_exceptions=True)
        await self._events.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        waiting = asyncio.create_task(self._send_comments(send))
        try:
            first = await self._first
            if first is not None:
                await self._send_part(send, self._event(first))
            async for event in self._events:
                await self._send_part(send, self._event(event))
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        if not self._named:
            await self._send_part(send, DONE)
        await send({"type": "http.response.body", "body": b""})

    async def _send_comments(self, send: Send) -> None:
        """One at once if there is no event yet, then whenever nothing was sent for a while."""
        if not self._first.done():
            await self._send_part(send, COMMENT)
        while self._keep_alive_s:
            left = self._sent_at + self._keep_alive_s - asyncio.get_running_loop().time()
            if left <= 0:
                await self._send_part(send, COMMENT)
            await asyncio.sleep(max(left, 0))

    def _event(self, content: Mapping[str, object]) -> bytes:
        self._sent += 1
        name = f"event: {content['type']}\n".encode() if self._named else b""
        return name + b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"

    def _last(self, error: ApiError) -> bytes:
        """The event of an error, and the end of the stream."""
        if not self._named:
            return self._event(error.body) + DONE
        detail = error.body["error"]
        fields = {"code": detail["code"], "message": detail["message"], "param": detail["param"]}
        return self._event({"type": "error", "sequence_number": self._sent, **fields})

    async def _send_part(self, send: Send, data: bytes) -> None:
        self._sent_at = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": data, "more_body": True})


async def _next(events: AsyncGenerator[_T, None]) -> _T | None:
    return await anext(events, None)
