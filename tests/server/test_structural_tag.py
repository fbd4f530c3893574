"""Structural tags: what each part of a format lets through, and where it may end."""

from __future__ import annotations

from typing import Any

import pytest

from softprompt.errors import DataError
from softprompt.server.structural_tag import StructuralTag, tag_grammar
from tests.support.grammars import kept
from tests.support.tiny import tiny_lm

INT: dict[str, Any] = {"type": "json_schema", "json_schema": {"type": "integer"}}
A = {"begin": "<a>", "content": INT, "end": "</a>"}
B: dict[str, Any] = {"type": "tag", "begin": "[b]", "content": {"type": "any_text"}, "end": ["[/b]", "[e]"]}
TRIGGERED = {"type": "triggered_tags", "triggers": ["<a>", "[b]"], "tags": [A, B]}
THINK = [{"type": "const_string", "value": "<t>"}, {"type": "any_text"}, {"type": "const_string", "value": "</t>"}]
EITHER = {"type": "or", "elements": [INT, {"type": "regex", "pattern": "ab+"}]}
STRUCTURES = [
    {"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"},
    {"begin": "<f=b>", "schema": {"enum": ["x"]}, "end": "</f>"},
]
OLD = {"structures": STRUCTURES, "triggers": ["<f="]}
MIXED = "hi <a>1</a> [b]x [/b] [b]y[e]<a>2</a> end"


@pytest.mark.parametrize(
    ("tag", "whole", "cut"),
    [
        (OLD, ["", "hi <f", 'hi <f=a>12</f> x <f=b>"x"</f>!'], [("<f=b>1", 5), ("<f=c", 3), ("<f=a>x", 5)]),
        ({"format": TRIGGERED}, ["", "hi", MIXED, "[b]z[e]"], [("<a>x", 3), ("[b] z", 5)]),
        ({"format": TRIGGERED | {"at_least_one": True}}, ["<a>1</a>", "<a>1</a> x [b][e]"], [("hi", 0), ("", 0)]),
        ({"format": TRIGGERED | {"stop_after_first": True}}, ["", "hi", "hi <a>1</a>"], [("<a>x", 3)]),
        (
            {"format": TRIGGERED | {"stop_after_first": True, "at_least_one": True}},
            ["<a>1</a>", "[b]<a>[e]"],
            [("hi", 0)],
        ),
        (
            {"format": {"type": "sequence", "elements": [*THINK, EITHER]}},
            ["<t>x </t </t>12", "<t></t>abb"],
            [("12", 0), ("<t>a</t>", 8), ("<t>a</t>ba", 8)],
        ),
        (
            {"format": {"type": "sequence", "elements": [TRIGGERED, {"type": "tag", **A | {"begin": "|"}}, THINK[0]]}},
            ["x <a>5</a> y|7</a><t>"],
            [("x|<", 2), ("x|7</a>", 7)],
        ),
        (
            {"format": {"type": "tags_with_separator", "tags": [A, B], "separator": ", "}},
            ["", "<a>1</a>, [b]x[/b]"],
            [("x", 0), ("<a>1</a>, ", 10)],
        ),
        (
            {"format": {"type": "tag", "begin": "(", "end": ")", "content": TRIGGERED}},
            ["(hi <a>1</a> more)", "()"],
            [("(a", 2)],
        ),
    ],
)
def test_what_a_tag_lets_through(tag: dict[str, Any], whole: list[str], cut: list[tuple[str, int]]) -> None:
    lm, lark = tiny_lm("llama"), tag_grammar(StructuralTag.model_validate(tag))
    for text in whole:
        assert kept(lm, lark, text) == (text, True)
    for text, end in cut:
        assert kept(lm, lark, text)[0] == text[:end] and (end < len(text) or not kept(lm, lark, text)[1])


def test_a_tag_ends_an_answer_that_stops_after_it() -> None:
    for more in ({"stop_after_first": True}, {"stop_after_first": True, "at_least_one": True}):
        lark = tag_grammar(StructuralTag.model_validate({"format": TRIGGERED | more}))
        assert kept(tiny_lm("llama"), lark, "<a>1</a> more") == ("<a>1</a>", True)


@pytest.mark.parametrize(
    "tag",
    [
        {},
        {"structures": STRUCTURES},
        OLD | {"format": INT},
        {"structures": STRUCTURES, "triggers": ["<g="]},
        {"structures": STRUCTURES, "triggers": ["<f", "<f="]},
        {"format": {"type": "sequence", "elements": [{"type": "any_text"}, INT]}},
        {"format": {"type": "sequence", "elements": [TRIGGERED, {"type": "any_text"}]}},
    ],
)
def test_what_no_grammar_can_say(tag: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        tag_grammar(StructuralTag.model_validate(tag))
