"""Soft prompts in a bucket: listed, fetched, checked, noticed when they change, and kept within bounds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from softprompt.errors import ConfigError, MissingExtraError, StoreError, UnreachableError
from softprompt.prompts import folder_cache, remote_store, store
from softprompt.prompts.folder_cache import FolderCache
from softprompt.prompts.remote_store import RemoteStore
from tests.support.artifacts import PLAIN, card, contents, prompt
from tests.support.far_away import URL, FarAway
from tests.support.missing import uninstall


@pytest.fixture(autouse=True)
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    FarAway.reset()
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_found", {})
    yield
    FarAway.reset()


def uploaded(folder: Path, seed: int, form: str = "embedding") -> Path:
    store.save(folder, prompt(form, seed=seed), card(name=folder.name), overwrite=True)
    FarAway.put_folder(folder)
    return folder


def opened(url: str = URL, **times: float) -> RemoteStore:
    remote = RemoteStore(url, **{"again_s": 0.0, "patience_s": 5.0, **times})
    remote.look_again()
    return remote


def same(remote: RemoteStore, name: str, folder: Path) -> bool:
    here = remote.here(name)
    return here is not None and contents(store.load(here)[0]) == contents(store.load(folder)[0])


def test_listed_fetched_changed_removed(tmp_path: Path) -> None:
    tone, _ = uploaded(tmp_path / "tone", 1), uploaded(tmp_path / "keys", 2, "kv")
    for path in ("half/card.json", "Not A Name/card.json", "Not A Name/prompt.safetensors", "notes.txt"):
        FarAway().pipe_file(f"/bucket/prompts/{path}", b"{}")
    remote = opened()
    assert list(remote.listing()) == ["keys", "tone"]
    facts = remote.facts("keys")
    assert facts is not None and (facts.form, facts.n_tokens, facts.base) == ("kv", 3, PLAIN)
    assert remote.here("tone") is None and not remote.is_current("tone")
    remote.fetch("tone")
    assert same(remote, "tone", tone) and remote.is_current("tone")
    version = remote.version()
    remote.look_again()
    assert remote.version() == version, "nothing changed"
    FarAway.calls.clear()
    remote.fetch("tone")
    assert not FarAway.calls["open prompt.safetensors"], "what is here is not fetched again"
    old = Path(str(remote.here("tone")))
    uploaded(tone, 3)
    remote.look_again()
    assert remote.version() != version
    assert not remote.is_current("tone") and remote.here("tone") == old, "the old one is here until the new one is"
    remote.fetch("tone")
    assert same(remote, "tone", tone) and remote.here("tone") != old
    FarAway.remove("keys/")
    uploaded(tmp_path / "late", 5)
    remote.look_again()
    assert list(remote.listing()) == ["late", "tone"]


def test_what_comes_is_checked(tmp_path: Path) -> None:
    """Other tensors than the card's, a card that is none, one that is too large: nothing of them is kept."""
    uploaded(tmp_path / "tone", 1)
    FarAway.put_folder(uploaded(tmp_path / "other", 2), "mixed")
    FarAway().pipe_file("/bucket/prompts/mixed/card.json", (tmp_path / "tone" / "card.json").read_bytes())
    FarAway.put_folder(tmp_path / "tone", "damaged")
    FarAway().pipe_file("/bucket/prompts/damaged/card.json", b"{}")
    FarAway.put_folder(tmp_path / "tone", "large")
    FarAway().pipe_file("/bucket/prompts/large/card.json", b" " * (remote_store.MAX_CARD_BYTES + 1))
    remote = opened()
    assert list(remote.listing()) == ["damaged", "mixed", "other", "tone"]
    with pytest.raises(StoreError, match="its card is damaged"):
        remote.facts("damaged")
    faults = {"mixed": "sha256", "damaged": "format version", "large": "too large", "no": "no such soft prompt"}
    for name, message in faults.items():
        with pytest.raises(StoreError, match=message):
            remote.fetch(name)
        assert remote.here(name) is None
    assert [path.name for path in (tmp_path / "cache" / "remote" / "prompts").iterdir()] == []


def test_a_store_that_fails_or_hangs(tmp_path: Path) -> None:
    """What is here stays, in a new process too; who asks for more has an error soon, not one for every minute."""
    tone = uploaded(tmp_path / "tone", 1)
    uploaded(tmp_path / "new", 2)
    opened().fetch("tone")
    FarAway.broken = True
    for hangs in (False, True):
        if hangs:
            FarAway.answers.clear()
        remote = RemoteStore(URL, again_s=0.0, patience_s=0.3)
        assert list(remote.listing()) == ["new", "tone"]
        assert remote.listed("tone") is not None and remote.is_current("tone") and same(remote, "tone", tone)
        began = time.monotonic()
        for call in (lambda _, remote=remote: remote.look_again(), remote.fetch):
            with pytest.raises(UnreachableError, match="does not answer" if hangs else "503 Slow Down"):
                call("new")
        assert time.monotonic() - began < 3
    FarAway.broken = False
    FarAway.answers.set()
    remote.fetch("new")
    assert remote.here("new") is not None


def test_many(tmp_path: Path) -> None:
    """Cards are read once and in batches; the listing is bounded."""
    folder = uploaded(tmp_path / "p0", 1)
    for i in range(1, 150):
        FarAway.put_folder(folder, f"p{i}")
    FarAway.calls.clear()
    remote = opened()
    assert len(remote.listing()) == 150 and FarAway.calls["find"] == 1
    assert FarAway.calls["cat card.json"] == 150 and all(remote.facts(name) for name in remote.listing())
    uploaded(tmp_path / "p7", 3)
    FarAway.calls.clear()
    remote.look_again()
    again = opened()
    assert FarAway.calls["cat card.json"] == 1, "of what changed alone, and a new process knows the rest"
    assert again.listing() == remote.listing()


def test_urls_are_names(tmp_path: Path) -> None:
    tone = uploaded(tmp_path / "tone", 1)
    assert contents(store.load(f"{URL}/tone")[0]) == contents(store.load(tone)[0])
    assert contents(store.load(f"file://{tone}")[0]) == contents(store.load(tone)[0])
    with pytest.raises(StoreError, match="no such soft prompt"):
        store.load(f"{URL}/none")
    with pytest.raises(StoreError, match="no such soft prompt"):
        store.load(f"file://{tmp_path}/none")
    FarAway.broken = True
    store.forget_found(f"{URL}/tone")
    with pytest.warns(UserWarning, match="the copy on this machine is used"):
        store.load(f"{URL}/tone")
    with pytest.raises(UnreachableError, match="503 Slow Down"):
        store.load(f"{URL}/new")
    assert store.beside(f"{URL}/router", "tone") == f"{URL}/tone"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall("s3fs", monkeypatch)
    with pytest.raises(MissingExtraError) as caught:
        store.find("s3://key:secret@bucket/tone")
    assert caught.value.hint == "pip install s3fs" and "secret" not in str(caught.value)
    with pytest.raises(StoreError, match="cannot be opened"):
        store.find("nonsense://bucket/tone")
    uninstall("fsspec", monkeypatch)
    with pytest.raises(ConfigError) as missing:
        store.find(f"{URL}/tone")
    assert missing.value.hint == "pip install 'softprompt[remote]'"


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used go first, what was used just now stays, remains of dead processes go."""
    cache = FolderCache(tmp_path, limit=250)

    def put(key: str) -> Path:
        def fill(scratch: Path) -> None:
            (scratch / "x").write_bytes(b"x" * 100)

        return cache.put(key, fill)

    def kept() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    for i, key in enumerate("abc"):
        os.utime(put(key), (i, i))
    cache.evict()
    assert kept() == ["b", "c"]
    assert cache.get("b") is not None and cache.get("a") is None
    os.utime(tmp_path / "c", (1, 1))
    put("d")
    assert kept() == ["b", "d"]
    put("e")
    assert kept() == ["b", "d", "e"], "all of them were used just now"
    left = tmp_path / ".f.tmp-1"
    left.mkdir()
    os.utime(left, (1, 1))
    monkeypatch.setattr(folder_cache, "GRACE_S", 0.0)
    cache.evict()
    assert len(kept()) == 2 and not left.exists()

    def slower(scratch: Path) -> None:
        put("g")
        (scratch / "x").write_bytes(b"y")

    assert (cache.put("g", slower) / "x").read_bytes() == b"x" * 100, "another process was faster"
