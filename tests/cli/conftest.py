"""Tiny base models in folders, prompts trained on one of them, and a shell of its own for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.rows import labelled, write_jsonl
from tests.support.shell import LONG, SHORT, done, same_answer
from tests.support.tiny import tiny_model, tiny_tokenizer


def saved_model(folder: Path, family: str, seed: int = 0) -> Path:
    """A tiny model and its tokenizer as `--model FOLDER` finds them."""
    tiny_model(family, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def own_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own folders, and none of the settings of the shell that runs the tests."""
    for name in [name for name in os.environ if name.startswith("SOFTPROMPT") or name.endswith("RANK")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SOFTPROMPT_DEBUG", "")  # the command line sets it: this way it is set back
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model."""
    return saved_model(tmp_path_factory.mktemp("models") / "base", "llama")


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Base models that prompts of `base` do not fit: one of other weights, one of another architecture."""
    folder = tmp_path_factory.mktemp("strangers")
    return {"weights": saved_model(folder / "weights", "llama", 1), "qwen2": saved_model(folder / "qwen2", "qwen2")}


@pytest.fixture(scope="session")
def library(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trained prompts: `ok` and `no`, which answer that, and `parity`, a classifier that learned little."""
    folder = tmp_path_factory.mktemp("library")
    home = str(folder / "prompts")
    data = {name: same_answer(folder / f"{name}.jsonl", name) for name in ("ok", "no")}
    data["parity"] = write_jsonl(folder / "parity.jsonl", *labelled(8))
    for name, path in data.items():
        options = SHORT if name == "parity" else LONG
        done("train", "--model", base, "--data", path, "--name", name, *options, SOFTPROMPT_HOME=home)
    return folder


@pytest.fixture
def trained(library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the data; the trained prompts are where the command line looks for them. Only to be read."""
    monkeypatch.setenv("SOFTPROMPT_HOME", str(library / "prompts"))
    return library


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights may be loaded."""

    def load(*_: object) -> None:
        raise AssertionError("a base model was loaded")

    monkeypatch.setattr("softprompt.models.loading._load_model", load)
