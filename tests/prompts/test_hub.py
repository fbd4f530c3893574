"""Soft prompts on the Hub: the real huggingface_hub client against a stand-in of the Hub in a process of its own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, constants

import softprompt
from softprompt.errors import ConfigError, StoreError
from softprompt.models.sources import PUBLISHED_AS
from softprompt.prompts import store
from tests.end_to_end.test_readme import parse
from tests.support.artifacts import card, contents, geometry, prompt
from tests.support.hub_stand_in import HubStandIn, hub_stand_in, use_hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content")  # huggingface_hub's own, of httpx
METRICS: dict[str, Any] = {"steps": 40, "stopped": "patience", "validation_loss": 0.1 + 0.2, "scores": {"f1": 1e-7}}


@pytest.fixture(scope="module")
def process() -> Iterator[HubStandIn]:
    with hub_stand_in() as running:
        yield running


@pytest.fixture
def stand_in(process: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubStandIn:
    """The only Hub that there is; prompts are in ./prompts."""
    use_hub(process, tmp_path / "hub", monkeypatch)
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    monkeypatch.chdir(tmp_path)
    return process


def saved(name: str = "tone", form: str = "embedding", **facts: Any) -> Path:
    base = geometry(base=facts.pop("base", "owner/base"))
    store.save(name, prompt(form, base), card(base, name=name, metrics=METRICS, **facts))
    return store.locate(name)


def there_again(name: str) -> None:
    """What the name leads to is the soft prompt "tone" of this machine."""
    assert contents(store.load(name)[0]) == contents(store.load("tone")[0])


def read_model_card(folder: Path) -> tuple[ModelCardData, str]:
    """Metadata and text as huggingface_hub's own parser reads them."""
    read = ModelCard((folder / "README.md").read_text())
    return cast("ModelCardData", read.data), read.text


def test_there_and_back(stand_in: HubStandIn) -> None:
    """One commit with the files of a soft prompt and no others; the same bits come back, under any name."""
    folder = saved()
    for name in ("curve.png", "secret.txt", "notes.md"):
        (folder / name).write_bytes(b"bytes")
    (folder / "link.png").symlink_to("/etc/hostname")
    pushed = softprompt.push("tone", "org/There", private=True)
    assert stand_in.files("org/There") == [
        ".gitattributes",
        "README.md",
        "card.json",
        "curve.png",
        "prompt.safetensors",
    ]
    state = stand_in.control("state")["repositories"]["org/There"]
    assert state["private"] and state["branches"]["main"] == pushed.commit and len(state["messages"]) == 2
    there_again("org/There")
    there_again(f"org/There@{pushed.commit}")
    pulled = softprompt.pull("org/There")
    assert pulled == store.locate("there")
    there_again("there")
    assert (pulled / "curve.png").read_bytes() == b"bytes"
    assert not any(path.is_symlink() for path in pulled.iterdir())
    with pytest.raises(StoreError, match="a soft prompt of that name is there"):
        softprompt.pull("org/There")
    softprompt.pull("org/There", name="there", overwrite=True)


def test_the_readme_is_a_model_card(stand_in: HubStandIn) -> None:
    """The Hub's own parser reads every number back; commands are commands; nothing of this machine is in it."""
    home = "/home/ada/models/own"
    saved("plain", base="smollm2-135m", method={"name": "prompt-tuning", "init_from": f"{home}/start"}, license="mit")
    saved("keys", "kv", base=home, recipe={"data": home, "seed": 3}, data={"text": "/ is a sign", "from": ["~/x/y"]})
    for name in ("plain", "keys"):
        softprompt.push(name, f"org/{name}")
        folder = store.find(f"org/{name}")
        text = "".join((folder / file).read_text() for file in ("README.md", "card.json"))
        assert "home" not in text and "~" not in text
        data, body = read_model_card(folder)
        results = {result.metric_type: result.metric_value for result in data.eval_results or ()}
        assert results == {"steps": 40, "validation_loss": 0.1 + 0.2, "scores.f1": 1e-7}
        assert (data.library_name, data.pipeline_tag) == ("softprompt", "text-generation")
        commands = [line for line in body.replace("`", "\n").splitlines() if line.startswith("softprompt ")]
        assert len(commands) == 6
        for line in commands:
            parse(line)
        yaml.safe_load(data.to_yaml())
    plain, _ = read_model_card(store.find("org/plain"))
    assert (plain.base_model, plain.license) == (PUBLISHED_AS["smollm2-135m"], "mit")
    _, public = store.load("org/keys")
    assert public.geometry.base == "own"
    assert public.data == {"text": "/ is a sign", "from": ["y"]} and public.recipe == {"data": "own", "seed": 3}


def test_revisions(stand_in: HubStandIn) -> None:
    """A branch is made, main stays; a pull request; an unchanged push; a revision that is missing."""
    saved()
    first = softprompt.push("tone", "org/branches")
    store.save("tone", prompt("embedding", seed=7), card(base=geometry(base="owner/base")), overwrite=True)
    assert softprompt.push("tone", "org/branches", revision="v2").name == "org/branches@v2"
    there_again("org/branches@v2")
    with pytest.raises(AssertionError):
        there_again("org/branches")
    assert softprompt.push("tone", "org/branches", create_pr=True).name == "org/branches@refs/pr/1"
    there_again("org/branches@refs/pr/1")
    assert store.find("org/branches").name == first.commit
    with pytest.raises(StoreError, match="no such branch, tag or commit"):
        store.find("org/branches@v3")
    with pytest.raises(ConfigError, match="two revisions"):
        softprompt.pull("org/branches@v2", revision="main")


def test_folders_win_and_dots_are_never_the_hub(stand_in: HubStandIn, tmp_path: Path) -> None:
    saved()
    softprompt.push("tone", "org/both")
    stand_in.control("log")
    here = tmp_path / "org" / "both"
    store.save(here, prompt("kv"), card())
    assert store.find("org/both") == Path("org/both")
    for name in ("./org/none", "../org/none", "/org/none", "a/b/c"):
        with pytest.raises(StoreError, match="no such soft prompt"):
            store.load(name)
    assert stand_in.control("log")["log"][:-1] == []


def test_what_is_cached_needs_no_hub(stand_in: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit is not looked up again; offline and with a dead Hub the copy is used, and an unknown name fails soon."""
    saved()
    pushed = softprompt.push("tone", "org/cached")
    there_again("org/cached")
    store.forget_found("org/cached")
    stand_in.control("log")
    there_again(f"org/cached@{pushed.commit}")
    assert [line for line in stand_in.control("log")["log"] if "_test" not in line] == []
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port in (silent.getsockname()[1], 9):
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
            store.forget_found("org/cached")
            began = time.monotonic()
            with pytest.warns(UserWarning, match="the copy on this machine is used"):
                there_again("org/cached")
            with pytest.raises(StoreError, match="the Hub cannot be reached"):
                store.find("org/new")
            with pytest.raises(StoreError, match="the Hub cannot be reached"):
                softprompt.push("tone", "org/new")
            assert time.monotonic() - began < 10
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    store.forget_found("org/cached")
    there_again("org/cached")
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE is set"):
        store.find("org/new")
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE"):
        softprompt.push("tone", "org/new")


def test_who_may_what(stand_in: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    saved()
    softprompt.push("tone", "org/own", private=True)
    softprompt.push("tone", "org/open")
    with pytest.raises(StoreError, match="this repository is public already"):
        softprompt.push("tone", "org/open", private=True)
    with pytest.raises(StoreError, match="does not let you"):
        softprompt.push("tone", "others/tone")
    stand_in.control("repository", name="org/gated", gated=True, files={"card.json": "{}", "prompt.safetensors": "x"})
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    for name, what, hint in (
        ("org/own", "a repository on the Hub that you may see", "hf auth login"),
        ("org/none", "a repository on the Hub that you may see", "./org/none"),
        ("org/gated", "gated", "hf.co/org/gated"),
    ):
        with pytest.raises(StoreError, match=what) as caught:
            store.find(name)
        assert hint in str(caught.value.hint)
    with pytest.raises(StoreError, match="does not let you") as caught:
        softprompt.push("tone", "org/open")
    assert "write to org/open" in str(caught.value.hint)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(StoreError, match="does not know this token"):
        store.find("org/open")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    with pytest.raises(StoreError, match="no token"):
        softprompt.push("tone", "org/open")
    there_again("org/open")


def test_what_is_no_soft_prompt(stand_in: HubStandIn) -> None:
    """Nothing is fetched of a repository of another kind or of files too large, and nothing else is overwritten."""
    saved()
    stand_in.control("repository", name="org/model", files={"config.json": "{}", "model.safetensors": "x"})
    stand_in.control("repository", name="org/peft", files={"adapter_config.json": "{}", "README.md": "x"})
    stand_in.control("repository", name="org/broken", files={"card.json": "{}", "prompt.safetensors": "x"})
    stand_in.control("log")
    for name, message in (("org/model", "no card.json and no prompt.safetensors"), ("org/peft", "softprompt import")):
        with pytest.raises(StoreError, match=message):
            store.find(name)
    softprompt.push("tone", "org/large")
    stand_in.control("sizes", **{"prompt.safetensors": 2**40})
    with pytest.raises(StoreError, match="file too large, nothing was fetched"):
        store.find("org/large")
    stand_in.control("sizes", **{"card.json": 2**30})
    with pytest.raises(StoreError, match="file too large, nothing was fetched"):
        softprompt.pull("org/large")
    assert not [line for line in stand_in.control("log")["log"] if "/resolve/" in line]
    with pytest.raises(StoreError, match="something else than a soft prompt"):
        softprompt.push("tone", "org/model")
    softprompt.push("tone", "org/model", overwrite=True)
    assert "model.safetensors" in stand_in.files("org/model")
    stand_in.control("sizes")
    with pytest.raises(StoreError, match="unknown format version"):
        softprompt.pull("org/broken")
    assert not store.locate("broken").exists()


def test_links_outside_the_cache_are_refused(tmp_path: Path) -> None:
    """The Hub's cache is made of links; a link that leaves it is none of those."""
    store.save(tmp_path / "real", prompt("kv"), card())
    inside = tmp_path / "models--o--r" / "snapshots" / "main"
    inside.mkdir(parents=True)
    blobs = tmp_path / "models--o--r" / "blobs"
    blobs.mkdir()
    for file in (store.CARD, store.TENSORS):
        (blobs / file).write_bytes((tmp_path / "real" / file).read_bytes())
        (inside / file).symlink_to(Path("../../blobs") / file)
    store.load(inside)
    (inside / store.CARD).unlink()
    (inside / store.CARD).symlink_to(tmp_path / "real" / store.CARD)
    with pytest.raises(StoreError, match="not a plain file"):
        store.load(inside)
