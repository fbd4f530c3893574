"""An encoder–decoder through the command line, from the data to the answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompt.errors import ConfigError
from softprompt.prompts import store
from tests.support.shell import LONG, SHORT, done, parsed, refused, same_answer
from tests.support.tiny import tiny_seq2seq_model, tiny_tokenizer

STRONG = ("--method", "prompt-tuning", "--n-tokens", 16, "--steps", 200, "--lr", 1.0)  # what a random encoder needs


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 as `--model FOLDER` finds it."""
    folder = tmp_path_factory.mktemp("models") / "t5"
    tiny_seq2seq_model("t5-1.1").save_pretrained(folder)
    tiny_tokenizer(closing=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("extra", [STRONG, (), ("--method.sites", "decoder")])
def test_train_eval_generate(t5: Path, tmp_path: Path, extra: tuple[object, ...]) -> None:
    data = same_answer(tmp_path / "rows.jsonl", "ok")
    done("data", "check", data, "--model", t5)
    done("train", "--model", t5, "--data", data, "--name", "tone", *LONG, *extra)
    lines = done("generate", "tone", "question 77").stdout.splitlines()
    assert lines == ["ok"]
    table = parsed("eval", "tone", "--data", data, "--json")
    assert table["soft_prompt"]["exact_match"] == 1.0
    assert table["base"]["exact_match"] == 0.0
    assert "tone" in done("list").stdout


def test_the_preview_shows_the_answer_alone(t5: Path, tmp_path: Path) -> None:
    data = same_answer(tmp_path / "rows.jsonl", "ok")
    assert "«o»«k»" in done("data", "preview", data, "--model", t5).stdout


def test_sites_of_a_causal_model_are_refused(base: Path, tmp_path: Path) -> None:
    data = same_answer(tmp_path / "rows.jsonl", "ok")
    error = refused("train", "--model", base, "--data", data, "--name", "x", *SHORT, "--method.sites", "cross")
    assert isinstance(error, ConfigError)
    assert error.where == "method.sites"
    assert not store.locate("x").exists()
