"""Clients that go away, wait too long or do not read: the job ends, the place is free, nothing is left."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from softprompt.server import generation_stream
from softprompt.server.generation_stream import COMMENT, EventStream, Interruptions
from softprompt.server.limits import Limits
from tests.support.live_server import USER, Live, live


def open_request(server: Live, stream: bool, **fields: Any) -> socket.socket:
    """A request on its way, whose reply no one has read."""
    body = json.dumps(
        {"model": "review", "prompt": "A", "max_tokens": 200, "seed": 1, "stream": stream} | fields
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {USER}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(head.encode() + body)
    return connection


def until(true: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_ends_the_job(stream: bool, server: Live) -> None:
    """Within a token, running or waiting; the next one gets the place."""
    server.engine.pace = 0.02
    running = [open_request(server, stream) for _ in range(server.engine.slots)]
    until(lambda: server.engine.running == server.engine.slots)
    waiting = open_request(server, stream)
    until(lambda: server.engine.waiting == 1)
    waiting.close()
    until(lambda: server.engine.waiting == 0, 1)
    assert server.engine.running == server.engine.slots, "the others go on"
    for connection in running:
        connection.close()
    until(lambda: server.engine.running == 0, 1)
    until(lambda: server.service.rate_limit.jobs == 0 and server.service.rate_limit.requests == 0, 1)
    assert server.service.prompt_cache.users("review") == 0
    server.engine.pace = 0.0
    assert server.ask("POST", "/v1/completions", {"model": "review", "prompt": "A", "max_tokens": 2}).status == 200


def test_who_leaves_ends_all_answers(server: Live) -> None:
    server.engine.pace = 0.02
    connection = open_request(server, stream=True, n=6)
    until(lambda: server.engine.running == 4 and server.engine.waiting == 2)
    connection.close()
    until(lambda: server.engine.running == server.engine.waiting == 0, 1)


def test_one_answer_that_fails_ends_the_others(server: Live) -> None:
    server.engine.broken = "boom"
    reply = server.ask("POST", "/v1/completions", {"model": "review", "prompt": "A", "n": 6})
    assert (reply.status, reply.code) == (500, "engine_error")


def test_a_stop_string_ends_the_job(server: Live) -> None:
    text = server.ask("POST", "/v1/completions", {"model": "review", "prompt": "A", "seed": 1, "max_tokens": 9}).json
    stop, opened = text["choices"][0]["text"][2], time.monotonic()
    server.engine.pace = 0.05
    body = {"model": "review", "prompt": "A", "seed": 1, "max_tokens": 200, "stop": stop}
    assert server.ask("POST", "/v1/completions", body).json["choices"][0]["finish_reason"] == "stop"
    assert time.monotonic() - opened < 5
    until(lambda: server.engine.running == 0, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline(stream: bool, prompts: Path) -> None:
    with live(prompts, limits=Limits(deadline_s=1, drain_s=1)) as server:
        server.engine.pace = 0.05
        body = {"model": "review", "prompt": "A", "seed": 1, "max_tokens": 200, "stream": stream}
        reply = server.ask("POST", "/v1/completions", body)
        if stream:
            assert reply.status == 200 and len(reply.events) > 2
            assert reply.events[-1]["error"]["code"] == "deadline_exceeded"
        else:
            assert (reply.status, reply.code) == (504, "deadline_exceeded")
            assert reply.headers["x-should-retry"] == "false"
        server.engine.pace = 0.0
        server.idle()


def test_who_does_not_read_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sending stands still once the buffers are full; the deadline ends it, and the last word is not waited for."""
    monkeypatch.setattr(generation_stream, "FINAL_EVENT_S", 0.1)
    closed, sent = list[bool](), list[Message]()

    async def events() -> AsyncGenerator[dict[str, int], None]:
        try:
            while True:
                yield {"event": len(sent)}
        finally:
            closed.append(True)

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) > 3:
            await never()

    async def stream() -> float:
        loop = asyncio.get_running_loop()
        opened = loop.time()
        response = await EventStream.begin(events(), Interruptions(never, opened + 0.2, asyncio.Event()))
        await response({"type": "http"}, never, send)
        return loop.time() - opened

    assert 0.2 < asyncio.run(stream()) < 2
    assert closed == [True]
    assert [message["type"] for message in sent[:2]] == ["http.response.start", "http.response.body"]


async def never() -> Message:
    return await asyncio.Future()


def test_a_stream_that_waits_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment at once, others while there is no event, and none while there are."""
    monkeypatch.setattr(generation_stream, "FIRST_EVENT_S", 0.01)
    sent = list[bytes]()

    async def events() -> AsyncGenerator[dict[str, int], None]:
        await asyncio.sleep(0.5)
        for i in range(20):
            yield {"event": i}
            await asyncio.sleep(0.02)

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def stream() -> None:
        ends = Interruptions(never, asyncio.get_running_loop().time() + 9, asyncio.Event())
        response = await EventStream.begin(events(), ends, keep_alive_s=0.15)
        assert response.headers["x-accel-buffering"] == "no"
        await response({"type": "http"}, never, send)

    asyncio.run(stream())
    first = sent.index(b'data: {"event":0}\n\n')
    assert 3 <= sent[:first].count(COMMENT) <= 5 and sent[1] == COMMENT
    assert COMMENT not in sent[first:] and len(sent) == first + 22


def test_a_proxy_has_something_to_read_at_once(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before the first token; OpenAI's events are what they are without the comments."""
    monkeypatch.setattr(generation_stream, "FIRST_EVENT_S", 0.05)
    server.engine.pace = 1.0
    opened = time.monotonic()
    connection = open_request(server, stream=True, max_tokens=1)
    parts = [connection.recv(65536)]
    while b": waiting" not in b"".join(parts):
        parts.append(connection.recv(65536))
    assert time.monotonic() - opened < 0.8 and b"x-accel-buffering: no" in b"".join(parts)
    while not parts[-1].endswith(b"0\r\n\r\n"):
        parts.append(connection.recv(65536))
    assert b"data: [DONE]" in b"".join(parts)
    connection.close()


def test_many_texts_are_answered_in_turns(prompts: Path) -> None:
    """As many at a time as a fourth of the queue; the answers are those of single requests, others get their places."""
    with live(prompts, limits=Limits(jobs=12, drain_s=1)) as server:
        texts = [f"text {i}" for i in range(20)]
        body = {"model": "review", "prompt": texts, "temperature": 0, "max_tokens": 3}
        whole = server.ask("POST", "/v1/completions", body).json
        assert [choice["index"] for choice in whole["choices"]] == list(range(20))
        single = [server.ask("POST", "/v1/completions", body | {"prompt": text}).json for text in texts]
        assert [choice["text"] for choice in whole["choices"]] == [one["choices"][0]["text"] for one in single]
        assert whole["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in single)
        server.engine.pace = 0.01
        connection = open_request(server, stream=True, prompt=texts, max_tokens=20)
        most, end = 0, time.monotonic() + 0.5
        while time.monotonic() < end:
            most = max(most, server.engine.running + server.engine.waiting)
            time.sleep(0.002)
        assert most == 3 and server.service.rate_limit.jobs == 3
        assert server.ask("POST", "/v1/completions", {"model": "talk", "prompt": "A", "max_tokens": 1}).status == 200
        connection.close()
        server.engine.pace = 0.0
        server.idle()


def test_a_full_queue(prompts: Path) -> None:
    """And too many requests of one key; both say when to come back."""
    with live(prompts, limits=Limits(jobs=2, drain_s=1), slots=1) as server:
        server.engine.pace = 0.02
        held = [open_request(server, stream=True) for _ in range(2)]
        until(lambda: server.service.rate_limit.jobs == 2)
        reply = server.ask("POST", "/v1/completions", {"model": "review", "prompt": "A"})
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (429, "queue_full", "1")
        for connection in held:
            connection.close()
        server.engine.pace = 0.0
        server.idle()
    with live(prompts, limits=Limits(key_requests=1, drain_s=1)) as server:
        server.engine.pace = 0.02
        held = [open_request(server, stream=False)]
        until(lambda: server.service.rate_limit.requests == 1)
        reply = server.ask("POST", "/v1/completions", {"model": "review", "prompt": "A", "stream": True})
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (429, "concurrency_exceeded", "1")
        held[0].close()
        server.engine.pace = 0.0
        server.idle()
