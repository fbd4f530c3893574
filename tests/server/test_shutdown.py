"""The end of a server: whatever it cuts off ends with OpenAI's error object, an id, a log line and a count."""

from __future__ import annotations

import signal
import socket
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from structlog.testing import capture_logs

from softprompt.server import uvicorn_server
from softprompt.server.limits import Limits
from softprompt.server.service import Service
from tests.server.test_generation_stream import open_request, until
from tests.support.live_server import USER, Reply, live

made: list[uvicorn_server.DrainingServer] = []


class Recorded(uvicorn_server.DrainingServer):
    """A server that a test can send signals to, as the main thread's handler would."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config, service)
        made.append(self)


def reply_on(connection: socket.socket) -> Reply:
    response = HTTPResponse(connection)
    response.begin()
    return Reply(response)


@pytest.mark.parametrize("signals", [[], [signal.SIGTERM] * 2, [signal.SIGINT] * 2], ids=["drain_s", "TERM", "INT"])
def test_all_that_is_cut_off_says_so(
    signals: list[signal.Signals], prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer, a stream, one that waits for the batch and one whose body has not come yet."""
    monkeypatch.setattr(uvicorn_server, "DrainingServer", Recorded)
    monkeypatch.setattr(uvicorn_server, "CLOSE_S", 1)
    limits = Limits(drain_s=20 if signals else 1)
    with capture_logs() as lines, live(prompts, limits=limits, slots=2) as server:
        server.engine.pace = 0.05
        whole, stream = (open_request(server, stream) for stream in (False, True))
        until(lambda: server.engine.running == 2)
        tokens = server.service.metrics.registry.get_sample_value
        until(lambda: (tokens("softprompt_generation_tokens_total") or 0) > 6)  # the stream has begun
        waiting = open_request(server, stream=False)
        until(lambda: server.engine.waiting == 1)
        unsent = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {USER}\r\ncontent-length: 9\r\n"
        unsent.sendall(head.encode() + b"content-type: application/json\r\n\r\n{")
        until(lambda: len(made[-1].server_state.tasks) == 4)
        for number in signals or [signal.SIGTERM]:
            made[-1].handle_exit(number, None)
        for connection in (whole, waiting, unsent):
            reply = reply_on(connection)
            assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "stopping", "5")
        streamed = reply_on(stream)
        assert streamed.status == 200 and len(streamed.events) >= 2
        assert streamed.events[-1]["error"]["code"] == "stopping"
    for connection in (whole, waiting, unsent, stream):
        connection.close()
    told: list[Any] = [line for line in lines if line["event"] == "request"]
    assert sorted(line["status"] for line in told) == [200, 503, 503, 503]
    assert [line["broke"] for line in told if line["status"] == 200] == ["stopping"]
    assert not [line for line in lines if line["log_level"] == "error"]
    metrics = server.service.metrics.text().decode()
    assert 'softprompt_request_success_total{finished_reason="abort"} 3.0' in metrics
    assert 'softprompt_http_requests_total{route="/v1/completions",status="503"} 3.0' in metrics
