"""Soft prompts in a bucket behind the server: new ones are noticed, and a bucket that hangs blocks nobody else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from softprompt.prompts.remote_store import RemoteStore
from tests.support.far_away import URL, FarAway
from tests.support.live_server import ADMIN, TEMPLATES, Live, Reply, live, save_prompt

PLAIN = TEMPLATES["review"][1]
MANY = 40  # more than the places of the cache, and than the threads of the server


@pytest.fixture(autouse=True)
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    FarAway.reset()
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    yield
    FarAway.reset()


def uploaded(folder: Path, seed: int, form: str = "embedding") -> None:
    save_prompt(folder, form, PLAIN, seed)
    FarAway.put_folder(folder)


def asked(server: Live, model: str) -> Reply:
    body = {"model": model, "prompt": "A", "temperature": 0, "max_tokens": 6}
    return server.ask("POST", "/v1/completions", body)


def said(server: Live, model: str) -> Any:
    reply = asked(server, model)
    return reply.json["choices"][0]["text"] if reply.status == 200 else (reply.status, reply.code)


def opened() -> RemoteStore:
    remote = RemoteStore(URL, again_s=0.05, fresh_s=0.2, patience_s=2.5)
    remote.look_again()
    return remote


def test_a_life_in_a_bucket(tmp_path: Path) -> None:
    uploaded(tmp_path / "tone", 1)
    with live(opened()) as server:
        before = said(server, "tone")
        assert isinstance(before, str)
        assert said(server, "late") == (404, "model_not_found")
        uploaded(tmp_path / "late", 2)
        time.sleep(0.1)
        assert isinstance(said(server, "late"), str), "a new one is noticed at once"
        ids = [row["id"] for row in server.ask("GET", "/v1/models").json["data"]]
        assert ids == ["tiny-llama", "late", "tone"]
        uploaded(tmp_path / "tone", 7)
        assert server.ask("PUT", "/v1/soft_prompts/tone", key=ADMIN).status == 200
        assert said(server, "tone") != before, "PUT reads the newest version"
        assert server.ask("PUT", "/v1/soft_prompts/none", key=ADMIN).status == 404
        server.idle()


def test_a_bucket_that_hangs_blocks_nobody_else(tmp_path: Path) -> None:
    """Prompts in memory and on this disk answer at once, while many wait for others and for names that are unknown."""
    for i in range(MANY):
        uploaded(tmp_path / f"p{i}", 1 + i % 5)
    remote = opened()
    remote.fetch("p1")
    save_prompt(tmp_path / "pinned", "kv", PLAIN, 3)
    with live(remote, places=3, pinned={"pinned": tmp_path / "pinned"}) as server, ThreadPoolExecutor(MANY) as pool:
        answers = {name: said(server, name) for name in ("p0", "pinned", "tiny-llama")}
        FarAway.answers.clear()
        time.sleep(0.3)
        waiting = [pool.submit(said, server, f"p{i}") for i in range(2, MANY)]
        waiting += [pool.submit(said, server, f"unknown{i}") for i in range(8)]
        time.sleep(0.3)
        began = time.monotonic()
        assert {name: said(server, name) for name in answers} == answers
        assert isinstance(said(server, "p1"), str), "on this disk, not in memory"
        assert server.ask("GET", "/v1/models").status == 200
        assert time.monotonic() - began < 2.2
        assert not any(future.done() for future in waiting[:5])
        failed = [future.result(30) for future in waiting]
        assert set(failed) == {(503, "store_unavailable")}
        FarAway.answers.set()
        assert isinstance(said(server, "p2"), str), "it answers again"
        server.idle()
