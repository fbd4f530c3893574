"""Only `prompts` and `prefix` may know which forms of soft prompts there are; everything else calls their methods."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from softprompt.prompts.card import _BUILT_IN_FORMS  # pyright: ignore[reportPrivateUsage]
from softprompt.prompts.forms import form_class, form_names

PACKAGE = Path(__file__).parents[2] / "softprompt"
MAY_KNOW = ("prompts", "prefix")
OUTSIDE = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] not in MAY_KNOW]
CLASSES = {form_class(name).__name__ for name in form_names()}


def asks_for_a_form(node: ast.AST) -> bool:
    """Whether this is `isinstance(…, KVPrompt)`, a comparison with "kv", or "kv" chosen by a condition."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
        return bool(CLASSES & {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)})
    if isinstance(node, ast.Compare):
        return any(is_form(part) for part in (node.left, *node.comparators))
    return isinstance(node, ast.IfExp) and (is_form(node.body) or is_form(node.orelse))


def is_form(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in form_names()


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
def test_no_one_else_asks_which_form_a_prompt_has(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [ast.unparse(node) for node in ast.walk(tree) if asks_for_a_form(node)] == []


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(prompt, KVPrompt)",
        "isinstance(prompt, (int, EmbeddingPrompt))",
        'form == "kv"',
        '"embedding" != card.form',
        '"kv" if x else "embedding"',
    ],
)
def test_such_a_question_would_be_noticed(source: str) -> None:
    assert any(asks_for_a_form(node) for node in ast.walk(ast.parse(source)))


def test_a_card_of_a_built_in_form_is_checked_without_the_forms() -> None:
    """Which would import torch."""
    assert form_names() == _BUILT_IN_FORMS
