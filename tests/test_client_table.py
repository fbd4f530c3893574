"""The table of docs/guides/clients.md: runs of different days are joined, and a reason is told once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.client_table import joined, table

KEYS = ("client", "version", "feature", "model", "result", "reason")


def fact(*values: str) -> dict[str, str]:
    return dict(zip(KEYS, values, strict=True))


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text("def test_chat(\ndef test_tools(\n", encoding="utf-8")
    (tmp_path / "tests" / "test_two.py").write_text("def test_chat(\n", encoding="utf-8")
    return tmp_path / "tests"


def run(folder: Path, *facts: dict[str, str]) -> Path:
    """A folder of results, as the tests of one run write them."""
    folder.mkdir()
    for i, one in enumerate(facts):
        (folder / f"{i}.json").write_text(json.dumps(one), encoding="utf-8")
    return folder


def test_runs_are_joined(tests: Path, tmp_path: Path) -> None:
    old = fact("one", "1.0", "chat", "base", "failed", "no such field")
    stays = fact("two", "1.0", "chat", "base", "passed", "")
    gone = fact("two", "1.0", "songs", "base", "failed", "its test is gone")
    joined(run(tmp_path / "first", old, stays, gone), tests)
    new = fact("one", "2.0", "chat", "base", "passed", "")
    assert joined(run(tmp_path / "second", new), tests) == [new, stays]
    assert joined(run(tmp_path / "third"), tests) == [new, stays]


def test_a_reason_is_told_once() -> None:
    facts = [
        fact("one", "1.0", "chat", "base", "passed", ""),
        fact("one", "1.0", "chat", "soft prompt", "failed", "too long"),
        fact("one", "1.0", "tools", "base", "failed", "no calls"),
        fact("one", "1.0", "tools", "soft prompt", "failed", "no calls"),
        fact("two", "3.1", "chat", "base", "skipped", "too long"),
    ]
    rows = table(facts).splitlines()
    assert rows[2:] == [
        "| one | 1.0 | base only (1) |  | no (2) |  |  |  |  |",
        "| two | 3.1 | not tried (1) |  |  |  |  |  |  |",
        "",
        "1. too long",
        "2. no calls",
    ]
