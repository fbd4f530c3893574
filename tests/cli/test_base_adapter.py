"""Base models with a LoRA adapter on the command line: --model ADAPTER_FOLDER and --base-adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompt.errors import ModelError, WrongBaseError
from softprompt.prompts import store
from tests.support.lora import TARGETS, save_lora
from tests.support.rows import labelled, write_jsonl
from tests.support.shell import SHORT, done, refused
from tests.support.tiny import tiny_model

VERBS = ("train", "sweep", "distill", "generate", "chat", "eval", "serve", "import", "export", "compose", "prune")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    return save_lora(folder, base, tiny_model("llama"), target_modules=TARGETS["llama"])


def test_a_prompt_of_an_adapted_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Trained with --base-adapter, found again by its card, and refused without the adapter."""
    data = write_jsonl(tmp_path / "rows.jsonl", *labelled(8))
    done("train", "--model", base, "--base-adapter", adapter, "--data", data, "--name", "tone", *SHORT)
    assert store.load_card(store.locate("tone")).geometry.base == f"{base}+{adapter}"
    ask = ("generate", "tone", "hello", "--max-new-tokens", 2, "--dtype", "float32")
    answer = done(*ask).stdout
    assert done(*ask, "--model", adapter).stdout == answer
    assert done(*ask, "--model", base, "--base-adapter", adapter).stdout == answer
    error = refused(*ask, "--model", base)
    assert isinstance(error, WrongBaseError) and f"--model {base}+{adapter}" in str(error.hint)


def test_the_folder_of_the_adapter_is_a_base_model(adapter: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", *labelled(8))
    done("data", "check", data, "--model", adapter)
    assert "»" in done("data", "preview", data, "--base-adapter", adapter).stdout
    done("train", "--model", adapter, "--data", data, "--name", "tone", *SHORT)
    assert store.load_card(store.locate("tone")).geometry.base == str(adapter)
    done("generate", "tone", "hello", "--max-new-tokens", 2, "--dtype", "float32")


def test_a_folder_without_an_adapter(base: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", *labelled(8))
    error = refused("train", "--model", base, "--base-adapter", base, "--data", data, "--name", "tone", *SHORT)
    assert isinstance(error, ModelError) and "no adapter there" in error.what


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_with_a_base_model_has_it(verb: str) -> None:
    assert "--base-adapter" in done(verb, "--help").stdout
