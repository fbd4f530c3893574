"""The style sheet in CONTRIBUTING.md, as far as scripts/prose can hold it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "prose"
faults: Callable[..., Iterator[tuple[int, str]]] = runpy.run_path(str(SCRIPT))["faults"]


def found(text: str, *, markdown: bool = True) -> list[tuple[int, str]]:
    return list(faults(text, markdown=markdown))


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("Rows stand behind a prefix.", "Rows come after a prefix."),
        ("Tokens in front of the soft prompt.", "Tokens before the soft prompt."),
        ("The answer behind it.", "The answer after it."),
        ("What the layers heard.", "What the layers read."),
        ("The loop is told of the loss.", "The loop receives the loss."),
        ("Says how many virtual tokens there are.", "The number of virtual tokens."),
        ("It reaches what that reaches.", "It reaches the same accuracy."),
        ("A large rate learns rows by heart.", "A large rate overfits."),
        ("The oldest prompt gives way.", "The oldest prompt is evicted."),
        ("It is fast – and small.", "It is fast and small."),
        ("A powerful method.", "A method with 0.7 accuracy."),
    ],
)
def test_each_banned_construction_is_found_and_its_cure_is_not(bad: str, good: str) -> None:
    ((number, what),) = found(f"fine\n{bad}")
    assert number == 2 and ": " in what
    assert found(good) == []


def test_code_quotations_and_empty_cells_are_no_prose() -> None:
    assert found("```\nbehind it\n```\n") == []
    assert found("`behind it` and «behind it»") == []
    assert found("| `cli` | – | none |") == []
    assert found("one is told apart by its name") == []
    assert found("```\n```\nbehind it") == [(3, "'behind it': after")], "the block has ended"
    assert len(found('"""Behind the prompt."""', markdown=False)) == 1


def test_all_pages_and_the_package_follow_it() -> None:
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_a_fault_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("Simply type it.")
    run = subprocess.run([sys.executable, SCRIPT, tmp_path / "page.md"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, f"{tmp_path / 'page.md'}:1: 'Simply': nothing, or a number\n")
