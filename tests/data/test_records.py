"""Rows to records: every accepted shape, every way to get one wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.parsing import parse_rows
from softprompt.data.records import Message
from softprompt.errors import DataError
from tests.support.rows import one, records

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


@given(WORDS, WORDS, WORDS)
def test_label_rows_survive_a_json_file(text: str, text2: str, label: str) -> None:
    row = {"text": text, "text2": text2, "label": label}
    record = one(json.loads(json.dumps(row)))
    assert (record.kind, record.fields, record.target) == ("label", {"text": text, "text2": text2}, label)
    assert record.references == (label,)


@given(WORDS, WORDS, st.booleans())
def test_prompt_completion_and_input_target_are_the_same(source: str, target: str, synonym: bool) -> None:
    row = {"input": source, "target": target} if synonym else {"prompt": source, "completion": target}
    record = one(json.loads(json.dumps(row)))
    assert (record.kind, record.target) == ("completion", target)
    assert record.fields == {"prompt": source, "input": source}


@given(st.lists(WORDS, min_size=1), WORDS)
def test_messages_keep_every_turn(questions: list[str], answer: str) -> None:
    turns = [t for q in questions for t in ({"role": "user", "content": q}, {"role": "assistant", "content": answer})]
    record = one({"messages": turns})
    assert record.messages == tuple(Message(t["role"], t["content"]) for t in turns)
    assert (record.kind, record.target, record.context, record.fields) == ("messages", answer, 0, {})


def test_prompt_and_completion_as_message_lists_learn_the_completion_only() -> None:
    record = one({"prompt": [*CHAT, CHAT[0]], "completion": [CHAT[1]]})
    assert (record.kind, len(record.messages), record.context, record.target) == ("messages", 4, 3, "Yo")


def test_text_alone_has_no_target() -> None:
    record = one({"text": "Once upon a time"})
    assert (record.kind, record.target, record.references) == ("text", None, ())


def test_other_strings_become_fields_and_other_values_do_not() -> None:
    record = one({"text": "a", "label": "b", "genre": "film", "id": 7, "note": ""})
    assert record.fields == {"text": "a", "genre": "film", "note": ""}


def test_other_strings_of_conversations_become_fields_too() -> None:
    row = {"messages": CHAT, "id": "7", "n": 7, "completion": "not a second answer"}
    assert one({**row, "references": ["b"]}).fields == {"id": "7"}


def test_references_are_kept_behind_the_target_without_repeats() -> None:
    record = one({"input": "q", "target": "a", "references": ["b", "a", "c"]})
    assert record.references == ("a", "b", "c")
    assert "references" not in record.fields


def test_whole_number_labels_are_taken_as_text() -> None:
    assert one({"text": "a", "label": 0}).target == "0"


def test_where_is_kept() -> None:
    assert [r.where for r in records({"text": "a"}, {"text": "b"})] == ["f.jsonl:1", "f.jsonl:2"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q"},
        {"prompt": "q", "completion": None},
        {"prompt": "q", "completion": ""},
        {"text": "q"},
        {"text": "q", "label": None},
        {"messages": CHAT[:1]},
        {"prompt": CHAT[:1]},
    ],
)
def test_inference_rows_need_no_target(row: object) -> None:
    record = one(row, require_target=False)
    assert (record.target, record.references) == (None, ())


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ([1], "a row must be a JSON object"),
        ({}, "none of the known fields"),
        ({"conversations": []}, "'conversations' must be a list of messages"),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, "no answer to a question"),
        ({"prompt": "q"}, "'completion' is missing"),
        ({"input": "q"}, "'target' is missing"),
        ({"prompt": "q", "completion": None}, "'completion' is missing"),
        ({"prompt": "q", "completion": "  "}, "'completion' is empty"),
        ({"prompt": "", "completion": "a"}, "'prompt' is empty"),
        ({"prompt": 3, "completion": "a"}, "int 3"),
        ({"prompt": "q", "completion": 3}, "put the number in quotes"),
        ({"text": "q", "label": {"a": 1}}, "have no 'label'"),
        ({"text": "q", "labels": ["a, b"]}, "a comma, which stands between labels"),
        ({"text": "q", "completion": "a"}, "rows of text alone have no 'completion'"),
        ({"text": "q", "label": "a", "prompt": "p", "completion": "c"}, "more than one way"),
        ({"input": "q", "prompt": "p", "completion": "c"}, "both 'prompt' and 'input'"),
        ({"text": "\ud800", "label": "a"}, "surrogate"),
        ({"prompt": "q", "completion": "a", "references": "b"}, "'references' must be a list"),
        ({"prompt": "q", "completion": "a", "references": [1]}, "a reference must be a string"),
        ({"prompt": "q", "completion": "a", "tools": [{"name": "f"}]}, "are for conversations"),
        ({"messages": CHAT, "tools": [{}]}, "must name its function"),
        ({"messages": CHAT, "tools": "["}, "must be JSON"),
        ({"messages": []}, "'messages' must be a list of messages"),
        ({"messages": "Hi"}, "'messages' must be a list of messages"),
        ({"messages": ["Hi"]}, "messages[0] must be an object"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0] must have a role"),
        ({"messages": [CHAT[0], {"role": "assistant"}]}, "content of messages[1]"),
        ({"messages": [CHAT[0], {**CHAT[1], "tool_calls": [1]}]}, "a tool call must name its function"),
        ({"messages": [{**CHAT[0], "tool_calls": [{"name": "f"}]}, CHAT[1]]}, "is not the assistant's"),
        ({"messages": CHAT[:1]}, "last message must be the assistant's"),
        ({"prompt": CHAT[:1], "completion": "a"}, "'completion' must be a list of messages"),
        ({"prompt": CHAT[:1]}, "'completion' must be a list of messages"),
    ],
)
def test_wrong_rows_are_named(row: object, part: str) -> None:
    with pytest.raises(DataError) as caught:
        one(row)
    assert part in str(caught.value)
    assert caught.value.where == "f.jsonl:1"
    assert '{"' in str(caught.value.expected) or "text + label" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("first", "second", "part"),
    [
        ({"text": "a", "label": "b"}, {"text": "a"}, "'label' is missing"),
        ({"text": "a"}, {"text": "a", "label": "b"}, "have no 'label'"),
        ({"text": "a", "label": "b"}, {"text": "a", "label": ["b", "c"]}, "must be one label"),
        ({"text": "a", "text2": "b", "label": "c"}, {"text": "a", "label": "c"}, "'text2' is missing"),
        ({"prompt": "a", "completion": "b"}, {"input": "a", "target": "b"}, "'prompt' is missing"),
        ({"prompt": "a", "completion": "b"}, {"prompt": CHAT[:1], "completion": CHAT[1:]}, "'messages'"),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "input": "a", "completion": "b"}, "both"),
    ],
)
def test_every_row_is_checked_against_the_first(first: object, second: object, part: str) -> None:
    with pytest.raises(DataError, match=part) as caught:
        records(first, second)
    assert caught.value.where == "f.jsonl:2"


@pytest.mark.parametrize(("bad", "suffix"), [(1, ""), (2, " (and 1 more row)"), (4, " (and 3 more rows)")])
def test_the_first_error_is_shown_and_the_others_counted(bad: int, suffix: str) -> None:
    rows = [{"text": "a", "label": "b"}, *[{"text": "a"}] * bad]
    with pytest.raises(DataError) as caught:
        records(*rows)
    assert caught.value.what == "field 'label' is missing" + suffix
    assert caught.value.where == "f.jsonl:2"


def test_no_rows_are_no_records() -> None:
    assert parse_rows([]) == []


@pytest.mark.parametrize(
    ("name", "meant"), [("lable", "label"), ("Label", "label"), ("labels", "label"), ("completions", "completion")]
)
def test_a_misspelt_answer_is_not_learned_as_text(name: str, meant: str) -> None:
    """A row {"text", "lable"} would otherwise train a language model of the texts."""
    with pytest.raises(DataError, match=rf"(?s)f.jsonl:1: .*{name!r} is not known.*did you mean '{meant}'"):
        records({"text": "I loved it.", name: "positive"})


def test_other_fields_beside_text_are_allowed() -> None:
    row = one({"text": "I loved it.", "title": "A film", "level": "3", "table": "x"})
    assert (row.kind, row.fields["title"]) == ("text", "A film")
