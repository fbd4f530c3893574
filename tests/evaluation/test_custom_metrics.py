"""Metrics by name, and functions of the user's own from a file or a module."""

from __future__ import annotations

from pathlib import Path

import pytest

from softprompt.errors import ConfigError
from softprompt.evaluation.custom_metrics import load_custom_metrics, scores_of
from softprompt.evaluation.metrics import exact_match, token_f1

RULES = """
def polite(answer, references):
    return float("please" in answer)

def shared(answer, references):
    return len(set(answer.split()) & set(" ".join(references).split()))

def broken(answer, references):
    return 1 / 0

def endless(answer, references):
    return float("inf")

number = 3
"""
ANSWERS, REFERENCES = ["please go", "go now", "a b c", "please"], [["go"], [], ["c b", "x"], [""]]


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.py"
    path.write_text(RULES, encoding="utf-8")
    return path


def test_the_librarys_own_by_name() -> None:
    found = load_custom_metrics(["f1", "exact_match"])
    right = [["a"], ["b c"]]
    assert list(found) == ["f1", "exact_match"]
    assert found["f1"](["x", "b"], right) == token_f1(["x", "b"], right)
    assert found["exact_match"](["a", "b"], right) == exact_match(["a", "b"], right)
    assert load_custom_metrics(["valid_json"])["valid_json"](["{}", "{"], [[], []]).value == 0.5


def test_a_function_in_a_file(rules: Path) -> None:
    names = [f"{rules}:polite", f"{rules}:shared"]
    scores = scores_of(load_custom_metrics(names), ANSWERS, REFERENCES)
    assert [scores[name].value for name in names] == [0.5, 0.75]
    assert scores[names[0]].low < 0.5 < scores[names[0]].high


def test_a_function_in_a_module(rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules.rename(rules.with_name("own_rules_of_a_test.py"))
    monkeypatch.syspath_prepend(str(rules.parent))
    (metric,) = load_custom_metrics(["own_rules_of_a_test:polite"]).values()
    assert metric(ANSWERS, REFERENCES).value == 0.5


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("f2", "exact_match, f1"),
        ("FILE:none", "no such function"),
        ("FILE:number", "one of ['polite', 'shared', 'broken', 'endless']"),
        ("none.py:f", "no such file: none.py"),
        ("no_such_module_at_all:f", "ModuleNotFoundError"),
        (":f", "no such metric"),
        ("https://example.org/rules.py:f", "no such file"),
    ],
)
def test_what_is_refused(name: str, part: str, rules: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_custom_metrics([name.replace("FILE", str(rules))])
    assert part in str(error.value)


@pytest.mark.parametrize(("name", "part"), [("broken", "ZeroDivisionError"), ("endless", "inf for 'please go'")])
def test_a_function_that_fails(name: str, part: str, rules: Path) -> None:
    (metric,) = load_custom_metrics([f"{rules}:{name}"]).values()
    with pytest.raises(ConfigError) as error:
        metric(ANSWERS, REFERENCES)
    assert part in str(error.value) and name in str(error.value)
