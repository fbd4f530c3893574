"""`softprompt distil`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from softprompt import store
from softprompt.errors import ConfigError, DataError, StoreError
from tests.cli.shell import done, refused, softprompt
from tests.data.rows import write_jsonl

SMALL = ("--inputs", 24, "--study.held-out", 6, "--study.input-tokens", 8, "--study.answer-tokens", 6)
QUICK = (*SMALL, "--steps", 4, "--batch-size", 4, "--dtype", "float32")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "policy.md").write_text("Speak as a pirate. End with Arr!", encoding="utf-8")
    return write_jsonl(tmp_path / "rows.jsonl", *({"prompt": f"q {i}?", "completion": f"a {i}"} for i in range(24)))


def test_a_text_becomes_a_soft_prompt(base: Path, rows: Path) -> None:
    args = ("distil", "--text", "policy.md", "--model", base, "--data", rows, "--name", "policy", *QUICK)
    shown = done(*args, "--n-tokens", 16).stdout
    for word in ("no text", "soft prompt", "full text", "recovered", "f1", "on 6 held-out messages", "100.0%"):
        assert word in shown, word
    assert "answers of the teacher" in shown and "policy.md, 32 tokens, read as a whole" in shown
    assert 'next        softprompt generate policy "your text"' in shown
    assert store.load_card(store.locate("policy")).n_tokens == 16
    assert done("generate", "policy", "Hi", "--max-new-tokens", 3, "--dtype", "float32").stdout
    scores = json.loads(done("eval", "policy", "--data", rows, "--dtype", "float32", "--json").stdout)
    assert scores["soft_prompt"]["rows"] == 24, "questions and answers are turns of a conversation"
    hint = refused(*args)
    assert isinstance(hint, StoreError) and "--overwrite" in str(hint.hint)


def test_several_sizes_and_json(base: Path, rows: Path) -> None:
    args = ("distil", "--text", "policy.md", "--model", base, "--data", rows, "--name", "policy", *QUICK)
    lines = [json.loads(line) for line in done(*args, "--n-tokens", "4,8", "--json").stdout.splitlines()]
    assert {line["event"] for line in lines} >= {"answers", "start", "step", "validation", "saved"}
    assert list(lines[-1]["fidelity"]["soft"]) == ["4", "8"]
    assert [Path(folder).name for folder in lines[-1]["folders"]] == ["policy.4", "policy.8"]


def test_settings_are_explained_and_kept(base: Path, rows: Path) -> None:
    shown = done("distil", "--text", "policy.md", "--n-tokens", 8, "--print-config").stdout
    assert "# messages to answer, the held-out ones with them\n  inputs: 320" in shown
    Path("own.yaml").write_text(shown, encoding="utf-8")
    assert done("distil", "own.yaml", "--print-config").stdout == shown


def test_mistakes(base: Path, rows: Path) -> None:
    assert isinstance(refused("distil", "--name", "a", "--model", base), ConfigError)
    assert isinstance(refused("distil", "--text", "none.md", "--name", "a", "--model", base), DataError)
    error = refused("distil", "--text", "policy.md", "--name", "a", "--study.imputs", 3)
    assert "did you mean study.inputs" in str(error.hint)
    error = refused("distil", "--text", "policy.md", "--name", "a", "--n-tokens", "4,x")
    assert isinstance(error, ConfigError)
    result = softprompt("distil", "--help")
    assert result.exit_code == 0 and "--demonstrations" in result.stdout
