"""`softprompt distill`."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from softprompt.distillation import dataset
from softprompt.distillation.teacher import Teacher
from softprompt.errors import ConfigError, DataError, StoreError
from softprompt.prompts import store
from tests.support.rows import write_jsonl
from tests.support.shell import done, refused, softprompt

SMALL = ("--queries", 24, "--study.held-out", 6, "--study.query-tokens", 8, "--study.answer-tokens", 6)
QUICK = (*SMALL, "--steps", 4, "--batch-size", 4, "--dtype", "float32")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "policy.md").write_text("Speak as a pirate. End with Arr!", encoding="utf-8")
    return write_jsonl(tmp_path / "rows.jsonl", *({"prompt": f"q {i}?", "completion": f"a {i}"} for i in range(24)))


def test_a_text_becomes_a_soft_prompt(base: Path, rows: Path) -> None:
    args = ("distill", "--text", "policy.md", "--model", base, "--data", rows, "--name", "policy", *QUICK)
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
    args = ("distill", "--text", "policy.md", "--model", base, "--data", rows, "--name", "policy", *QUICK)
    lines = [json.loads(line) for line in done(*args, "--n-tokens", "4,8", "--json").stdout.splitlines()]
    assert {line["event"] for line in lines} >= {"answers", "start", "step", "validation", "saved"}
    assert list(lines[-1]["fidelity"]["soft"]) == ["4", "8"]
    assert [Path(folder).name for folder in lines[-1]["folders"]] == ["policy.4", "policy.8"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_while_the_teacher_answers(
    number: signal.Signals, code: int, base: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered is kept, and how to go on is said."""
    monkeypatch.setattr(dataset, "ANSWER_BATCH", 8)
    args = ("distill", "--text", "policy.md", "--model", base, "--data", rows, "--name", "policy", *QUICK)
    args = (*args, "--n-tokens", 8)
    real, asked = Teacher.answers, list[int]()

    def stop(self: Teacher, *given: Any, **named: Any) -> Any:
        asked.append(1)
        if len(asked) == 2:
            signal.raise_signal(number)
        return real(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "answers", stop)
        stopped = softprompt(*args)
        assert stopped.exit_code == code and "Traceback" not in stopped.output
        assert f"stopped by {number.name}" in stopped.stderr and "--resume" in stopped.stderr
        done(*args, "--resume")
    assert len(asked) == 4, "three batches, of which the second was asked twice"


def test_settings_are_explained_and_kept(base: Path, rows: Path) -> None:
    shown = done("distill", "--text", "policy.md", "--n-tokens", 8, "--print-config").stdout
    assert "# queries in all, including the held-out ones\n  queries: 320" in shown
    Path("own.yaml").write_text(shown, encoding="utf-8")
    assert done("distill", "own.yaml", "--print-config").stdout == shown


def test_mistakes(base: Path, rows: Path) -> None:
    assert isinstance(refused("distill", "--name", "a", "--model", base), ConfigError)
    assert isinstance(refused("distill", "--text", "none.md", "--name", "a", "--model", base), DataError)
    empty = write_jsonl(rows.with_name("empty.jsonl"))
    for source in (("--text", "none.md"), ("--demonstrations", empty), ("--text", "policy.md", "--data", empty)):
        error = refused("distill", *source, "--name", "a", "--model", "no-model")
        assert isinstance(error, DataError), "files come first: a missing model would be an error, too"
    error = refused("distill", "--text", "policy.md", "--name", "a", "--study.querys", 3)
    assert "did you mean study.queries" in str(error.hint)
    error = refused("distill", "--text", "policy.md", "--name", "a", "--n-tokens", "4,x")
    assert isinstance(error, ConfigError)
    result = softprompt("distill", "--help")
    assert result.exit_code == 0 and "--demonstrations" in result.stdout
