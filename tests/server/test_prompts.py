"""Soft prompts as a resource, and the folder they come from."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from softprompt.prompts import store
from softprompt.server import catalogue as catalogue_module
from softprompt.server.api_keys import Caller
from softprompt.server.catalogue import OTHER_BASE, Catalogue
from tests.support.live_server import ADMIN, TEMPLATES, Live, live, save_all, save_prompt
from tests.support.tiny import tiny_lm

PLAIN = TEMPLATES["review"][1]


def prompt(server: Live, method: str, name: str, body: Any = None) -> Any:
    return server.ask(method, f"/v1/soft_prompts/{name}", body, key=ADMIN)


def said(server: Live, model: str) -> tuple[int, str]:
    reply = server.ask("POST", "/v1/completions", {"model": model, "prompt": "A", "temperature": 0, "max_tokens": 6})
    return reply.status, reply.json["choices"][0]["text"] if reply.status == 200 else reply.code


def test_the_list(server: Live) -> None:
    rows = {row["id"]: row for row in server.ask("GET", "/v1/soft_prompts", key=ADMIN).json["data"]}
    assert sorted(rows) == sorted([*TEMPLATES, "stranger", "torn"])
    assert (rows["stranger"]["state"], rows["stranger"]["fault"]) == ("unusable", OTHER_BASE)
    assert (rows["review"]["form"], rows["review"]["n_tokens"], rows["review"]["parent"]) == ("kv", 5, "tiny-llama")
    assert prompt(server, "GET", "review").json | {"state": ""} == rows["review"] | {"state": ""}
    assert (prompt(server, "GET", "none").status, prompt(server, "GET", "none").code) == (404, "soft_prompt_not_found")


def test_load_use_replace_unload(tmp_path: Path) -> None:
    """A soft prompt's life while the server runs."""
    with live(save_all(tmp_path / "prompts"), places=3) as server:
        assert prompt(server, "GET", "review").json["state"] == "on_disk"
        assert prompt(server, "PUT", "review").json["state"] == "loaded"
        status, before = said(server, "review")
        assert status == 200
        save_prompt(tmp_path / "prompts" / "review", "embedding", PLAIN, 77)
        assert said(server, "review") == (200, before), "it is read again when it is told to"
        assert prompt(server, "PUT", "review").json["form"] == "embedding"
        status, after = said(server, "review")
        assert status == 200 and after != before
        assert prompt(server, "DELETE", "review").json["state"] == "unloaded"
        assert said(server, "review") == (404, "model_not_found")
        assert "review" not in {row["id"] for row in server.ask("GET", "/v1/models").json["data"]}
        assert (tmp_path / "prompts" / "review").is_dir(), "its files stay"
        assert prompt(server, "PUT", "review").status == 200
        assert said(server, "review") == (200, after)
        server.idle()


def test_unloaded_between_the_look_and_the_use(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a model that is not there, as if it had been unloaded before."""

    async def found(model: str, caller: Caller) -> str:
        return model

    monkeypatch.setattr(server.service.directory, "find", found)
    reply = server.ask("POST", "/v1/completions", {"model": "none", "prompt": "A"})
    assert (reply.status, reply.code, reply.json["error"]["param"]) == (404, "model_not_found", "model")


def test_what_cannot_be_loaded(server: Live) -> None:
    for name, code in (("stranger", "wrong_base_model"), ("torn", "unusable_soft_prompt")):
        assert (prompt(server, "PUT", name).status, prompt(server, "PUT", name).code) == (400, code)
        assert "/" not in prompt(server, "PUT", name).json["error"]["message"]


def test_nothing_comes_in_over_http(server: Live) -> None:
    """No path, URL or tensor: no body at all."""
    for body in ({"path": "/tmp/x"}, {"url": "https://evil.example"}, b"\0" * 10):
        assert prompt(server, "PUT", "review", body).status == 400


@pytest.mark.parametrize(
    "name", ["..%2Freview", "%2e%2e", "review%00", "REVIEW", "x" * 65, "%F0%9F%98%80", ".x", "a%5Cb"]
)
def test_names_that_leave_the_folder(name: str, server: Live) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert prompt(server, method, name).status == 404


def test_a_pinned_one_comes_from_anywhere_and_stays(tmp_path: Path) -> None:
    save_prompt(tmp_path / "elsewhere" / "Mine", "kv", PLAIN, 3)
    for i in range(4):
        save_prompt(tmp_path / "prompts" / f"p{i}", "kv", PLAIN, 20 + i)
    with live(tmp_path / "prompts", places=2, pinned={"mine": tmp_path / "elsewhere" / "Mine"}) as server:
        assert prompt(server, "GET", "mine").json["state"] == "loaded"
        assert len({said(server, name) for name in ("p0", "p1", "mine", "p2", "p3", "mine")}) == 5
        assert prompt(server, "GET", "mine").json | {"pinned": True} == prompt(server, "GET", "mine").json
        assert server.service.prompt_cache.evictions == 3
        server.idle()


def test_a_prompt_named_like_the_base_model(tmp_path: Path) -> None:
    """The base model keeps its name."""
    save_prompt(tmp_path / "tiny-llama", "kv", PLAIN, 3)
    with live(tmp_path) as server:
        ids = [row["id"] for row in server.ask("GET", "/v1/models").json["data"]]
        assert ids == ["tiny-llama", "tiny-llama:tiny-llama"]
        assert said(server, ids[0])[1] != said(server, ids[1])[1]
        server.idle()


def catalogue(folder: Path) -> Catalogue:
    return Catalogue(tiny_lm("llama", bos=True).geometry, folder, {})


def test_links_are_not_followed(tmp_path: Path) -> None:
    save_prompt(tmp_path / "outside" / "a", "kv", PLAIN, 1)
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "a").symlink_to(tmp_path / "outside" / "a")
    assert catalogue(folder).path("a") is None
    assert catalogue(folder).entries() == ()


def test_the_list_is_kept_until_the_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new, a replaced and a removed folder are noticed at once, and only new cards are read."""
    read, real = list[str](), store.load_card

    def counted(path: Path) -> Any:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(catalogue_module.store, "load_card", counted)
    for name in ("a", "b"):
        save_prompt(tmp_path / name, "kv", PLAIN, 1)
    listed = catalogue(tmp_path)
    assert [entry.name for entry in listed.entries()] == ["a", "b"] == read
    save_prompt(tmp_path / "c", "kv", PLAIN, 1)
    assert [entry.name for entry in listed.entries()] == ["a", "b", "c"] == read
    save_prompt(tmp_path / "b", "embedding", PLAIN, 1)
    assert [entry.form for entry in listed.entries()] == ["kv", "embedding", "kv"]
    assert read == ["a", "b", "c", "b"]
    shutil.rmtree(tmp_path / "a")
    assert [entry.name for entry in listed.entries()] == ["b", "c"]
    old = time.time() - 60
    os.utime(tmp_path, (old, old))
    listed.entries()
    scans, scan = list[int](), listed._scan
    monkeypatch.setattr(listed, "_scan", lambda: scans.append(1) or scan())
    assert listed.entries() is listed.entries() and not scans, "a folder at rest is not read again"


def test_a_broken_card_is_listed_as_such(tmp_path: Path) -> None:
    save_prompt(tmp_path / "a", "kv", PLAIN, 1)
    (tmp_path / "a" / store.CARD).write_text("{")
    (tmp_path / "Not-A-Name").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert [(entry.name, entry.fault) for entry in catalogue(tmp_path).entries()] == [("a", "its card is damaged")]


def test_without_a_folder(tmp_path: Path) -> None:
    assert catalogue(tmp_path / "none").entries() == ()
    assert Catalogue(tiny_lm("llama").geometry, None, {}).entries() == ()
