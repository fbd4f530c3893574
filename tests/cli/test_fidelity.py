"""`softprompt fidelity`, and `--metric` of the verbs that score answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompt.errors import ConfigError, DataError
from tests.cli.test_distill import QUICK
from tests.support.rows import write_jsonl
from tests.support.shell import done, parsed, refused

METRIC = """
def short(answer, references):
    return float(len(answer) < 4)
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "a.md").write_text("Speak as a pirate.", encoding="utf-8")
    (tmp_path / "b.md").write_text("Fees are 5. Arr!", encoding="utf-8")
    (tmp_path / "rules.py").write_text(METRIC, encoding="utf-8")
    return write_jsonl(tmp_path / "rows.jsonl", *({"prompt": f"q {i}?", "completion": f"a {i}"} for i in range(24)))


def test_two_texts_joined(base: Path, rows: Path) -> None:
    for name in ("a", "b"):
        args = ("--text", f"{name}.md", "--model", base, "--data", rows, "--name", name, "--n-tokens", 12)
        shown = done("distill", *args, *QUICK, "--metric", "rules.py:short").stdout
        assert " short" in shown
    assert "softprompt fidelity both" in done("compose", "a | b", "--name", "both", "--dtype", "float32").stdout
    shown = done("fidelity", "both", "--metric", "rules.py:short").stdout
    for word in ("held-out messages of a", "held-out messages of b", "no text", "all texts", "full text", "short"):
        assert word in shown, word
    assert shown.count("both lacks") + shown.count("both is within") == 2
    found = parsed("fidelity", "both", "--json")
    assert [one["source"] for one in found["on"]] == ["a", "b"]
    assert set(found["on"][1]["soft"]) == {"b", "both", "all texts"} and found["on"][0]["rows"] == 6
    scores = parsed("eval", "a", "--data", rows, "--dtype", "float32", "--json", "--metric", "rules.py:short")
    assert set(scores["soft_prompt"]) >= {"rules.py:short", "exact_match"}
    own = parsed("fidelity", "a", "--json")
    assert [one["source"] for one in own["on"]] == ["a"] and own["on"][0]["lost_by_texts"] is None


@pytest.mark.usefixtures("no_model")
def test_mistakes(base: Path, rows: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before a model is loaded."""
    args = ("distill", "--text", "a.md", "--model", base, "--data", rows, "--name", "a", *QUICK)
    assert isinstance(refused(*args, "--metric", "f2"), ConfigError)
    assert isinstance(refused("eval", "a", "--data", rows, "--metric", "rules.py:long"), ConfigError)
    monkeypatch.setenv("SOFTPROMPT_HOME", str(library / "prompts"))
    error = refused("fidelity", "ok")
    assert isinstance(error, DataError) and "softprompt eval ok --data" in str(error.hint)
