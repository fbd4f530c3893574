"""A router under its own name: each request is answered by the soft prompt that it chooses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt.evaluation.routing import assign, expanded, routers_of
from softprompt.inference.generate import Request, load_prompts
from softprompt.prompts import router
from softprompt.prompts.router import Router
from softprompt.server.catalogue import OTHER_BASE
from tests.support.live_server import ADMIN, TEMPLATES, Live, live, save_prompt
from tests.support.tiny import tiny_lm

TEXTS = ("cats and cats", "a long way home")
NAMES = ("mix.1", "mix.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two soft prompts and a router that tells the two texts apart; one of another base model, and a damaged one."""
    folder, lm = tmp_path_factory.mktemp("mixture"), tiny_lm("llama", bos=True)
    for seed, name in enumerate(NAMES, 1):
        save_prompt(folder / name, "kv", TEMPLATES["review"][1], seed)
    means = torch.stack([lm.embed(lm.tokenizer.encode(text)).float().mean(0) for text in TEXTS])
    apart = means[0] - means[1]
    router.save_router(folder / "mix", Router(torch.stack([apart, -apart]), NAMES, lm.geometry))
    other = tiny_lm("qwen2").geometry
    router.save_router(folder / "stranger", Router(torch.zeros(2, other.hidden), NAMES, other))
    router.save_router(folder / "torn", Router(torch.zeros(2, lm.geometry.hidden), NAMES, lm.geometry))
    (folder / "torn" / router.ROUTER_TENSORS).write_bytes(b"no tensors")
    return folder


@pytest.fixture(scope="module")
def mixture(folder: Path) -> Iterator[Live]:
    with live(folder, places=1) as server:
        yield server
        server.idle()


def said(server: Live, model: str, text: Any) -> Any:
    body = {"model": model, "prompt": text, "temperature": 0, "max_tokens": 6}
    reply = server.ask("POST", "/v1/completions", body)
    return reply.json if reply.status == 200 else (reply.status, reply.code)


def test_every_text_gets_the_prompt_that_generate_gives_it(
    mixture: Live, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a place for one soft prompt, of which another one is asked first."""
    monkeypatch.setenv("SOFTPROMPT_HOME", str(folder))
    routers, lm = routers_of(["mix"]), tiny_lm("llama", bos=True)
    formatted_prompts = load_prompts(lm, expanded(["mix"], routers))
    chosen = [
        request.name for request in assign(lm, routers, formatted_prompts, [Request(text, "mix") for text in TEXTS])
    ]
    assert chosen == list(NAMES)
    for text, name in zip(TEXTS, chosen, strict=True):
        own, wanted = said(mixture, "mix", text), said(mixture, name, text)
        assert own["model"] == "mix"
        assert [own[key] for key in ("choices", "usage", "system_fingerprint")] == [
            wanted[key] for key in ("choices", "usage", "system_fingerprint")
        ]
        talk = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 6}
        reply = mixture.ask("POST", "/v1/chat/completions", {"model": f"{mixture.service.name}:mix"} | talk)
        assert reply.json["choices"][0]["message"]["content"] == wanted["choices"][0]["text"]


def test_one_text_a_request(mixture: Live) -> None:
    assert said(mixture, "mix", list(TEXTS)) == (400, "invalid_value")
    assert len(said(mixture, "mix", list(TEXTS[:1]))["choices"]) == 1


def test_it_is_a_model_and_a_resource(mixture: Live) -> None:
    models = [row["id"] for row in mixture.ask("GET", "/v1/models").json["data"]]
    assert models == [mixture.service.name, "mix", *NAMES]
    rows = {row["id"]: row for row in mixture.ask("GET", "/v1/soft_prompts", key=ADMIN).json["data"]}
    assert (rows["mix"]["form"], rows["mix"]["state"]) == ("router", "on_disk")
    assert [rows[name]["fault"] for name in ("stranger", "torn")] == [OTHER_BASE, "its files are damaged"]
    for method, status in (("DELETE", 404), ("PUT", 200)):
        assert mixture.ask(method, "/v1/soft_prompts/mix", key=ADMIN).status == 200
        assert mixture.ask("GET", "/v1/models/mix").status == status
        found = said(mixture, "mix", TEXTS[0])
        assert found == (404, "model_not_found") if status == 404 else found["choices"]


@pytest.mark.parametrize(("name", "code"), [("stranger", "wrong_base_model"), ("torn", "unusable_soft_prompt")])
def test_one_that_does_not_work_is_refused(name: str, code: str, mixture: Live) -> None:
    assert said(mixture, name, TEXTS[0]) == (400, code)


def test_a_chosen_prompt_that_was_unloaded(mixture: Live) -> None:
    assert mixture.ask("DELETE", f"/v1/soft_prompts/{NAMES[1]}", key=ADMIN).status == 200
    assert said(mixture, "mix", TEXTS[1]) == (404, "model_not_found")
    assert said(mixture, "mix", TEXTS[0])["choices"]
    assert mixture.ask("PUT", f"/v1/soft_prompts/{NAMES[1]}", key=ADMIN).status == 200
