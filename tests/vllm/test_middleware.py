"""What vLLM's own server gets to see of a request, by an app in its place that says what it got."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from softprompt.data.records import Message
from softprompt.formatting.formatted_prompt import from_card
from softprompt.formatting.inputs import chat_input_ids, text_input_ids
from softprompt.prompts import store
from softprompt.vllm import middleware
from softprompt.vllm.middleware import SoftPrompts, remove_field
from softprompt.vllm.published import PublishedPrompt, find_published, publish
from tests.support.live_server import TEMPLATES, save_prompt
from tests.support.tiny import tiny_lm, tiny_tokenizer

ASK = {"messages": [{"role": "user", "content": "Where is my parcel?"}]}


async def echo(request: Request) -> Response:
    """The body as it came, and how long the header says it is."""
    body = await request.body()
    return Response(body, headers={"x-length": request.headers["content-length"]})


async def stream(request: Request) -> Response:
    return StreamingResponse(iter([b"one ", b"two"]))


async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": "base", "object": "model", "parent": None, "root": "/m"}]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of soft prompt, and one with the base model's name."""
    folder, lm = tmp_path_factory.mktemp("served"), tiny_lm("llama", bos=True)
    for name, (form, template) in (TEMPLATES | {"base": TEMPLATES["review"]}).items():
        save_prompt(folder / "prompts" / name, form, template, 1)
        publish(lm, *store.load(folder / "prompts" / name, lm.geometry), folder)
    return folder


@pytest.fixture
def client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """vLLM's place is taken by `echo`; its state is as vLLM makes it."""
    monkeypatch.setattr(middleware, "load_tokenizer", lambda name: tiny_tokenizer(bos=True))
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/inference/v1/generate")
    routes = [Route(path, echo, methods=["POST"]) for path in paths]
    app = Starlette(routes=[*routes, Route("/v1/stream", stream, methods=["POST"]), Route("/v1/models", models)])
    app.add_middleware(SoftPrompts)
    config = {"soft_prompts": str(folder)}
    app.state.vllm_config = SimpleNamespace(
        kv_transfer_config=SimpleNamespace(kv_connector_extra_config=config),
        model_config=SimpleNamespace(tokenizer="tiny"),
    )
    app.state.args = SimpleNamespace(served_model_name=["base", "alias"], model="tiny")
    return TestClient(app)


def got(client: TestClient, path: str, body: Any, status: int = 200) -> Any:
    reply = client.post(f"/v1/{path}", json=body)
    assert reply.status_code == status, reply.text
    if status == 200:
        assert int(reply.headers["x-length"]) == len(reply.content)
    return reply.json()


def published(folder: Path, name: str) -> PublishedPrompt:
    found = find_published(folder, name)
    assert found is not None
    return found


@pytest.mark.parametrize("model", ["{}", "base:{}", "alias:{}"])
@pytest.mark.parametrize("name", ["review", "talk", "kind", "asked", "stern"])
def test_a_conversation(client: TestClient, folder: Path, name: str, model: str) -> None:
    lm, prompt = tiny_lm("llama", bos=True), published(folder, name)
    formatted = from_card(*store.load(folder / "prompts" / name))
    wanted = chat_input_ids([Message("user", "Where is my parcel?")], formatted, lm.tokenizer)
    body = {"model": model.format(name), "temperature": 0, "n": 2, "stream": True} | ASK
    assert got(client, "chat/completions", body) == body | {
        "model": "base",
        "stop_token_ids": list(prompt.end_ids),
        "kv_transfer_params": {"soft_prompt": prompt.id, "prompt_token_ids": [0] * prompt.size + wanted},
    }


def test_texts(client: TestClient, folder: Path) -> None:
    lm, prompt = tiny_lm("llama", bos=True), published(folder, "question")
    formatted = from_card(*store.load(folder / "prompts" / "question"))
    rows = [[0] * prompt.size + text_input_ids(text, formatted, lm.tokenizer) for text in ("Where?", "When?")]
    found = got(client, "completions", {"model": "question", "prompt": ["Where?", "When?"]})
    assert found["prompt"] == rows
    assert found["kv_transfer_params"] == {"soft_prompt": prompt.id}
    assert got(client, "completions", {"model": "question", "prompt": "Where?"})["prompt"] == rows[:1]


def test_the_repetition_penalty_finds_no_placeholder_that_is_not_in_the_text(client: TestClient, folder: Path) -> None:
    size = published(folder, "talk").size
    body = {"model": "talk", "repetition_penalty": 1.2} | ASK
    ids = got(client, "chat/completions", body)["kv_transfer_params"]["prompt_token_ids"]
    assert set(ids[:size]) == {ids[size]}


def test_the_base_model_is_left_alone(client: TestClient) -> None:
    """Byte by byte, with fields that only vLLM knows; so is what is no soft prompt's, and what is no JSON."""
    for model in ("base", "alias", "nobody", "base:nobody"):
        raw = b'{ "model": "%s", "echo": true, "prompt_logprobs": 1, "prompt": "x" }' % model.encode()
        assert client.post("/v1/completions", content=raw).content == raw
    for raw in (b"no json", b'{"model": ', b"\xff\xfe", b"", b"[1]", b'{"model": 7}'):
        assert client.post("/v1/completions", content=raw).content == raw


def test_a_soft_prompt_of_the_base_models_name(client: TestClient, folder: Path) -> None:
    assert got(client, "completions", {"model": "base", "prompt": "x"})["prompt"] == "x"
    found = got(client, "completions", {"model": "base:base", "prompt": "x"})
    assert found["kv_transfer_params"]["soft_prompt"] == published(folder, "base").id


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/inference/v1/generate"])
def test_clients_do_not_drive_the_connector(client: TestClient, path: str) -> None:
    forged = {"soft_prompt": "0" * 32, "prompt_token_ids": [1]}
    body: dict[str, Any] = {"model": "base", "kv_transfer_params": forged, "vllm_xargs": {"kv_transfer_params": "x"}}
    body["sampling_params"] = [{"extra_args": {"kv_transfer_params": forged, "other": 1}}]
    wanted = {"model": "base", "vllm_xargs": {}, "sampling_params": [{"extra_args": {"other": 1}}]}
    assert client.post(path, json=body).json() == wanted
    twice = b'{"kv_transfer_params": {"a": 1}, "model": "base", "kv_transfer_params": null}'
    assert client.post(path, content=twice).json() == {"model": "base"}
    assert client.post(path, content=twice.decode().encode("utf-16")).json() == {"model": "base"}


def test_their_own_is_replaced_behind_a_soft_prompt(client: TestClient, folder: Path) -> None:
    found = got(client, "completions", {"model": "review", "prompt": "x", "kv_transfer_params": {"soft_prompt": "y"}})
    assert found["kv_transfer_params"] == {"soft_prompt": published(folder, "review").id}


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("completions", {"echo": True}, "echo"),
        ("completions", {"prompt_logprobs": 1}, "prompt_logprobs"),
        ("completions", {"prompt": [1, 2]}, "prompt"),
        ("completions", {"prompt": ["x", ""]}, "prompt"),
        ("completions", {"use_beam_search": True}, "use_beam_search"),
        ("completions", {"stop_token_ids": [5]}, "stop_token_ids"),
        ("chat/completions", {"tools": [{"type": "function"}]}, "tools[0].function"),
        ("chat/completions", {"chat_template": "{{ 1 }}"}, "chat_template"),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
    ],
)
def test_what_a_soft_prompt_cannot_do(client: TestClient, path: str, change: dict[str, Any], param: str | None) -> None:
    body = {"model": "review"} | ({"prompt": "x"} if path == "completions" else ASK) | change
    error = got(client, path, body, 400)["error"]
    assert param is None or error["param"] == param


def test_a_damaged_soft_prompt(client: TestClient, folder: Path) -> None:
    (folder / "torn.json").write_text("{")
    try:
        error = got(client, "completions", {"model": "torn", "prompt": "x"}, 500)["error"]
    finally:
        (folder / "torn.json").unlink()
    assert error["code"] == "unusable_soft_prompt"
    assert str(folder) not in json.dumps(error)


def test_bodies_that_are_too_large_or_too_deep(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = b'{"model": ' + b"[" * 200_000
    assert client.post("/v1/completions", content=deep).status_code == 400
    monkeypatch.setattr(middleware, "MAX_BODY_BYTES", 100)
    assert client.post("/v1/completions", content=b"x" * 101).status_code == 413
    assert client.post("/v1/completions", content=b"x" * 100).status_code == 200


def test_streams_and_lists(client: TestClient) -> None:
    assert client.post("/v1/stream", json={}).text == "one two"
    data = client.get("/v1/models").json()["data"]
    assert [entry["id"] for entry in data] == ["base", *sorted({*TEMPLATES} | {"base:base"})]
    assert data[1] == {"id": "asked", "object": "model", "parent": "base", "root": "asked"}
    assert client.get("/v1/nothing").status_code == 404


def test_without() -> None:
    body: Any = {"a": [{"x": 1, "b": {"x": None}}], "x": {"x": 2}}
    assert remove_field(body, "x")
    assert body == {"a": [{"b": {}}]}
    assert not remove_field(body, "x")
    assert not remove_field([1, "x", None], "x")
