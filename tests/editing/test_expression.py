"""The language of compose: what is written, and where it goes wrong."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.editing.expression import (
    Average,
    Concatenation,
    Expression,
    PromptName,
    Resized,
    Sum,
    moves_tokens,
    parse_expression,
    prompt_names,
)
from softprompt.errors import ConfigError

A, B, C = PromptName("a"), PromptName("b"), PromptName("c")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a", A),
        ("(a)", A),
        ("a-b.c_d", PromptName("a-b.c_d")),
        ("./prompts/a-1", PromptName("./prompts/a-1")),
        ("16", PromptName("16")),
        ("0.5*16", Sum((0.5,), (PromptName("16"),))),
        ("average", PromptName("average")),
        ("resize - a", Sum((1, -1), (PromptName("resize"), A))),
        ("0.7*a + 0.3*b", Sum((0.7, 0.3), (A, B))),
        ("0.7 * a+b", Sum((0.7, 1), (A, B))),
        ("a - b", Sum((1, -1), (A, B))),
        ("a - 2*b - c", Sum((1, -2, -1), (A, B, C))),
        ("-1e-3*a + b", Sum((-0.001, 1), (A, B))),
        ("2*3*a", Sum((6,), (A,))),
        ("a - (b - c)", Sum((1, -1), (A, Sum((1, -1), (B, C))))),
        ("0.5*(a | b)", Sum((0.5,), (Concatenation((A, B)),))),
        ("a | b | c", Concatenation((A, B, C))),
        ("a + b | c", Concatenation((Sum((1, 1), (A, B)), C))),
        ("average(a, b + c)", Average((A, Sum((1, 1), (B, C))))),
        ("average(a)", Average((A,))),
        ("resize(a | b, 16)", Resized(Concatenation((A, B)), 16)),
    ],
)
def test_trees(text: str, tree: Expression) -> None:
    assert parse_expression(text) == tree


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("", 1, "ends where the name of a soft prompt"),
        ("a +", 3, "ends where the name of a soft prompt"),
        ("a -b", 4, "'-b' stands where an operator"),
        ("a b", 3, "'b' stands where an operator"),
        ("a | | b", 5, r"'\|' stands where the name"),
        ("(a", 2, r"ends where '\)' should be"),
        ("a)", 2, r"'\)' stands where an operator"),
        ("a*b", 1, "'a' stands where a weight"),
        ("a*0.5", 1, "'a' stands where a weight"),
        ("nan*a", 3, "'nan' stands where a weight"),
        ("1e999*a", 5, "'1e999' stands where a weight"),
        ("0.5*", 4, "ends where the name"),
        ("resize(a)", 9, r"'\)' stands where ','"),
        ("resize(a, 0)", 11, "'0' stands where a number of virtual tokens"),
        ("resize(a, 1.5)", 13, "'1.5' stands where a number of virtual tokens"),
        ("resize(a, 9999999)", 17, "'9999999' stands where a number"),
        ("resize(a, b, 3)", 11, "'b' stands where a number"),
        ("mean(a, b)", 4, r"'mean' stands where average\(…\)"),
        ("average()", 9, r"'\)' stands where the name"),
        ("a; b", 2, "';' has no meaning here"),
        ("a & b", 3, "'&' has no meaning here"),
        ("__import__('os')", 12, "has no meaning here"),
    ],
)
def test_mistakes(text: str, place: int, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)character {place}: .*{what}.*with spaces around"):
        parse_expression(text)


def test_deep_nesting_is_no_crash() -> None:
    assert parse_expression("(" * 40 + "a" + ")" * 40) == A
    for text in ("(" * 5000 + "a", "average(" * 5000 + "a"):
        with pytest.raises(ConfigError, match="too many parentheses"):
            parse_expression(text)
    assert len(prompt_names(parse_expression(" + ".join(["a"] * 5000)))) == 1


def test_what_an_expression_uses() -> None:
    tree = parse_expression("resize(b, 3) | average(a, 2*b) - c")
    assert prompt_names(tree) == ["b", "a", "c"]
    assert (
        moves_tokens(tree)
        and moves_tokens(parse_expression("resize(a, 3)"))
        and moves_tokens(parse_expression("2*(a | b)"))
    )
    assert not moves_tokens(parse_expression("average(a, 2*b) - c"))


@given(st.text(st.sampled_from("ab01.-_ */+|(),ρ"), max_size=30) | st.text(max_size=12))
def test_any_text_is_a_tree_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert prompt_names(parse_expression(text))
