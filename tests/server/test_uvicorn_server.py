"""The listening socket: its connections send what they have at once."""

from __future__ import annotations

import asyncio
import socket

from softprompt.server.uvicorn_server import listen


def test_connections_do_not_wait_for_acknowledgments() -> None:
    """With Nagle's algorithm the body of an answer would wait for that of its headers, 40 ms on Linux."""

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = listen("127.0.0.1", 0)
        async with await asyncio.start_server(answer, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            value = await found
            writer.close()
            await writer.wait_closed()
        return value

    assert asyncio.run(accepted()) == 1
