"""Metrics, logs, liveness, draining, an engine that fails, `check`."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from softprompt.server.catalogue import Catalogue
from softprompt.server.limits import Limits
from softprompt.server.logs import configure
from softprompt.server.model_directory import served_name
from softprompt.server.selfcheck import self_check
from softprompt.server.service import Service
from tests.server.test_generation_stream import open_request, until
from tests.support.live_server import ADMIN, BASE, TEMPLATES, Live, live
from tests.support.server_oracle import OracleEngine
from tests.support.tiny import tiny_lm

SECRET = "the secret of the client"
ASKED = {"model": "review", "prompt": SECRET, "temperature": 0, "max_tokens": 5}


def metrics(server: Live) -> dict[str, float]:
    """Value by name and labels, without buckets."""
    families = text_string_to_metric_families(server.ask("GET", "/metrics").raw.decode())
    return {
        sample.name.removeprefix("softprompt_")
        + "".join(f",{k}={v}" for k, v in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def test_metrics(prompts: Path) -> None:
    with live(prompts, places=1) as server:
        for model in ("review", "review", "talk"):
            assert server.ask("POST", "/v1/completions", ASKED | {"model": model, "n": 2}).status == 200
        server.ask("GET", f"/{SECRET.replace(' ', '-')}")
        found = metrics(server)
        wanted = {
            "num_requests_running": 0,
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": 0,
            "prompts_loaded": 1,
            "prompt_cache_hits_total": 1,
            "prompt_cache_misses_total": 2,
            "prompt_cache_evictions_total": 1,
            "prefix_cache_hits_total": 3,
            "prefix_cache_queries_total": 10,
            "generation_tokens_total": 30,
            "request_success_total,finished_reason=length": 6,
            "time_to_first_token_seconds_count": 6,
            "request_queue_time_seconds_count": 6,
            "inter_token_latency_seconds_count": 24,
            "e2e_request_latency_seconds_count": 6,
            "http_requests_total,route=/v1/completions,status=200": 3,
            "http_requests_total,route=other,status=404": 1,
        }
        assert {name: found.get(name) for name in wanted} == wanted
        assert found["prompt_tokens_total"] > 3 * len(SECRET)
        server.engine.pace = 0.02
        held = [open_request(server, stream=True, max_tokens=20) for _ in range(server.engine.slots + 1)]
        until(lambda: server.engine.waiting == 1)
        busy = metrics(server)
        assert (busy["num_requests_running"], busy["num_requests_waiting"]) == (4, 1)
        assert busy["kv_cache_usage_perc"] == 1
        server.idle()
        later = metrics(server)
        assert later["request_queue_time_seconds_count"] == 11
        waited = [one["request_queue_time_seconds_sum"] for one in (found, later)]
        assert waited[0] < 0.1 < waited[1], "one waited for twenty tokens of another"
        for connection in held:
            connection.close()


def test_labels_do_not_grow_with_what_clients_send(server: Live) -> None:
    def ask(i: int) -> None:
        server.ask("GET", f"/path-{i}")
        server.ask("GET", f"/v1/models/model-{i}")
        server.ask("PUT", f"/v1/soft_prompts/name-{i}", key=ADMIN)
        server.ask("POST", "/v1/completions", {"model": f"model-{i}", "prompt": "A"})

    ask(0)
    before = set(metrics(server))
    for i in range(1, 5):
        ask(i)
    assert set(metrics(server)) - before <= {"http_requests_total,route=/metrics,status=200"}


def test_liveness(server: Live) -> None:
    for path in ("/livez", "/readyz", "/health"):
        assert server.ask("GET", path, key="").json == {"status": "ok"}
        assert (server.ask("HEAD", path, key="").status, server.ask("HEAD", path, key="").raw) == (200, b"")
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", server.ask("GET", "/version").json["version"])


def test_a_failed_engine(prompts: Path) -> None:
    """Nothing is taken any more, liveness and metrics answer, and the server ends by itself with the error."""
    from softprompt.errors import EngineError
    from softprompt.server.api_keys import ApiKeys
    from softprompt.server.app import create_app
    from softprompt.server.uvicorn_server import listen, run_server

    async def work() -> None:
        engine = OracleEngine(tiny_lm("llama", bos=True))
        service = Service(engine.lm, engine, Catalogue(engine.lm.geometry, prompts, {}), name=BASE, places=2)
        running = asyncio.create_task(run_server(service, create_app(service, ApiKeys()), listen("127.0.0.1", 0)))
        await asyncio.sleep(0.2)
        assert service.unready == "" and engine.started
        engine.failure = "device assert at 0x7f00"
        assert service.unready == "the engine has failed"
        with pytest.raises(EngineError, match="the engine has failed"):
            await running
        assert not engine.started

    asyncio.run(asyncio.wait_for(work(), 20))


def test_what_a_failed_engine_answers(prompts: Path) -> None:
    """For as long as a request holds the server up; why it failed is for the log."""
    with live(prompts, limits=Limits(drain_s=20)) as server:
        server.engine.pace = 0.03
        running = open_request(server, stream=True)
        until(lambda: server.engine.running == 1)
        server.engine.failure = "boom at 0x7f00"
        for method, path in (("GET", "/readyz"), ("POST", "/v1/completions")):
            reply = server.ask(method, path, ASKED if method == "POST" else None)
            assert reply.status == 503 and reply.code in {"not_ready", "stopping", "engine_failed"}
            assert "boom" not in reply.raw.decode()
        assert server.ask("GET", "/livez", key="").status == server.ask("GET", "/metrics").status == 200
        running.close()


def test_draining(prompts: Path) -> None:
    """Told to stop: new requests get 503, those that run end, then the server goes."""
    with live(prompts, limits=Limits(drain_s=20)) as server:
        server.engine.pace = 0.03
        running = open_request(server, stream=True, max_tokens=120)
        until(lambda: server.engine.running == 1)
        server.service.rate_limit.draining = True
        for method, path in (("GET", "/readyz"), ("GET", "/v1/models"), ("POST", "/v1/completions")):
            reply = server.ask(method, path, ASKED if method == "POST" else None)
            assert reply.status == 503 and int(reply.headers["retry-after"]) > 0
        assert server.ask("GET", "/livez", key="").status == 200
        parts = list[bytes]()
        while part := running.recv(65536):
            parts.append(part)
        running.close()
        whole = b"".join(parts)
        assert b'"finish_reason":"length"' in whole and b"data: [DONE]" in whole


def test_draining_is_not_for_ever(prompts: Path) -> None:
    """The context manager waits for the server to end."""
    with live(prompts, limits=Limits(drain_s=0)) as server:
        server.engine.pace = 0.5
        running = open_request(server, stream=True)
        until(lambda: server.engine.running == 1)
    assert server.engine.running == 0
    running.close()


def logged(server: Live, body: dict[str, Any]) -> list[Any]:
    with capture_logs() as lines:
        server.ask("POST", "/v1/completions", body, headers={"x-request-id": "mine"})
        until(lambda: bool(lines))  # the line comes after the reply
    return list(lines)


@pytest.mark.parametrize("body", [ASKED, ASKED | {"stream": True}, ASKED | {"model": SECRET}, {SECRET: SECRET}])
def test_logs_hold_no_text(body: dict[str, Any], server: Live) -> None:
    (line,) = logged(server, body)
    assert line["event"] == "request" and line["route"] == "/v1/completions"
    assert SECRET not in json.dumps(line)
    if "model" in line:
        assert (line["model"], line["tokens"], line["finished"]) == ("review", 5, ["length"])


def test_faults_are_logged_without_text(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client learns the request's id alone; the log has the traceback, but no message, which may hold text."""

    async def fail(*_: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr(server.service.directory, "models", fail)
    with capture_logs() as lines:
        reply = server.ask("GET", "/v1/models", headers={"x-request-id": "mine"})
        until(lambda: len(lines) == 2)
    assert (reply.status, reply.code) == (500, "internal_error")
    assert "mine" in reply.json["error"]["message"] and SECRET not in reply.raw.decode()
    assert [line["event"] for line in lines] == ["fault", "request"]
    assert lines[0]["error"] == "KeyError" and "routes/models.py" in lines[0]["traceback"]
    assert SECRET not in json.dumps(lines)


def test_content_is_logged_when_asked(prompts: Path) -> None:
    with live(prompts, log_content=True) as server:
        reply = server.ask("POST", "/v1/completions", ASKED)
        server.idle()
        (line,) = logged(server, ASKED)
        assert line["content"] == ASKED and line["answers"] == [reply.json["choices"][0]["text"]]
        server.idle()


@pytest.fixture
def _logging() -> Iterator[None]:
    """What a test configures is as it was afterwards."""
    before = structlog.get_config(), list(logging.root.handlers), logging.root.level
    yield
    structlog.configure(**before[0])
    logging.root.handlers[:], logging.root.level = before[1], before[2]


@pytest.mark.usefixtures("_logging")
def test_log_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Ours, and warnings of others."""
    configure("json")
    structlog.get_logger().info("ours", n=1)
    logging.getLogger("uvicorn.error").warning("theirs")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("ours", "info"), ("theirs", "warning")]


@pytest.mark.usefixtures("_logging")
def test_a_log_that_cannot_be_written_ends_nothing(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that was closed, as by an ended pipe, is no fault of a request; lines go where stderr is now."""
    closed, later = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", closed)
    configure("json")
    closed.close()
    with live(prompts) as server:
        assert server.ask("POST", "/v1/completions", ASKED).status == 200
        logging.getLogger("uvicorn.error").warning("theirs")
        monkeypatch.setattr(sys, "stderr", later)
        assert server.ask("POST", "/v1/completions", ASKED).status == 200
        server.idle()
        monkeypatch.undo()
    assert json.loads(later.getvalue().splitlines()[0])["event"] == "request"


def test_check(prompts: Path) -> None:
    """Everything answers once but what is torn; what is for another base model is no matter of ours."""

    async def work() -> dict[str, str]:
        engine = OracleEngine(tiny_lm("llama", bos=True))
        service = Service(engine.lm, engine, Catalogue(engine.lm.geometry, prompts, {}), name=BASE, places=2)
        found = {model: fault async for model, fault in self_check(service)}
        await service.prompt_cache.settle()
        service.prompt_cache.check_integrity()
        assert {job.prompt and job.prompt.partition("#")[0] for job in engine.seen} == {None, *TEMPLATES}
        return found

    found = asyncio.run(work())
    assert "safetensors" in found.pop("torn")
    assert found == dict.fromkeys([BASE, *TEMPLATES], "")


def test_names_of_base_models(tmp_path: Path) -> None:
    """No path of this machine is ever a name."""
    (tmp_path / "my-model").mkdir()
    (tmp_path / "m.Q4.gguf").write_text("")
    assert served_name("smollm2-135m") == "smollm2-135m"
    assert served_name("org/model") == "org/model"
    assert served_name(str(tmp_path / "my-model")) == "my-model"
    assert served_name(str(tmp_path / "m.Q4.gguf")) == "m.Q4"
