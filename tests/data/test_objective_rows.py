"""Pairs of answers in TRL's and OpenAI's formats, and prompts alone: what is compared, and faults by their lines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from softprompt.data.convert import own_row
from softprompt.data.objective_rows import encode_pairs, encode_prompts, same_answers
from softprompt.data.parsing import parse_rows, row_faults
from softprompt.data.read_options import ReadOptions
from softprompt.data.records import Record
from softprompt.data.template import Template
from softprompt.data.tokenize import Example, encode_rows
from softprompt.data.tokenizer import decode
from softprompt.errors import DataError
from tests.support.tiny import tiny_tokenizer

ASKED, GOOD, BAD = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "assistant", "content": "Go."},
)
EARLIER = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
TEXTS = [
    {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go."},
    {"chosen": "Human: Hi\nAssistant: Hello!", "rejected": "Human: Hi\nAssistant: Go."},
]
CONVERSATIONS = [
    {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [ASKED], "chosen": "Hello!", "rejected": "Go."},
    {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    {"chosen": [*EARLIER, ASKED, GOOD], "rejected": [*EARLIER, ASKED, BAD]},
    {"input": {"messages": [ASKED], "tools": []}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
]


def read(*rows: object, **options: Any) -> list[Record]:
    return parse_rows([(f"f.jsonl:{i}", row) for i, row in enumerate(rows, 1)], options=ReadOptions(**options))


def learned(row: Example | None) -> str:
    assert row is not None
    return decode([token for token, on in zip(row.ids, row.mask, strict=True) if on], tiny_tokenizer())


def given(row: Example | None) -> str:
    assert row is not None
    return decode([token for token, on in zip(row.ids, row.mask, strict=True) if not on], tiny_tokenizer())


@pytest.mark.parametrize("row", [*TEXTS, *CONVERSATIONS], ids=lambda row: " ".join(row))
def test_both_answers_follow_the_same_prompt(row: dict[str, Any]) -> None:
    (record,) = read(row, pairs=True)
    template = Template("chat") if record.is_conversation else Template("text", "{prompt}")
    (pair,) = encode_pairs([record], template, tiny_tokenizer())
    assert (learned(pair).strip(), learned(pair.rejected).strip()) == ("Hello!<|im_end|>", "Go.<|im_end|>")
    assert given(pair) == given(pair.rejected)
    assert "Hi" in given(pair)
    again = read(json.loads(json.dumps(own_row(record))), pairs=True)
    assert encode_pairs(again, template, tiny_tokenizer())[0].ids == pair.ids, "convert keeps both answers"
    plain = encode_rows(read(row), template, tiny_tokenizer())  # the next-token objective learns the same as before
    assert plain[0].ids == pair.ids and plain[0].rejected is None


FAULTS = [
    ({"prompt": "a", "chosen": "b", "rejected": None}, "field 'rejected' is missing"),
    ({"prompt": "a", "chosen": "b"}, "field 'rejected' is missing"),
    ({"prompt": "a", "chosen": "b", "rejected": 3}, "field 'rejected' must be a string"),
    ({"prompt": "a", "chosen": "b", "rejected": " "}, "field 'rejected' is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": [BAD]}, "both answers must be texts"),
    ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [ASKED]}, "the rejected answer: the last message"),
]


@pytest.mark.parametrize(("row", "what"), FAULTS, ids=[what for _, what in FAULTS])
def test_a_fault_is_told_by_its_line(row: dict[str, Any], what: str) -> None:
    rows = [("f.jsonl:1", TEXTS[0]), ("f.jsonl:2", row)]
    with pytest.raises(DataError, match=r"f\.jsonl:2") as caught:
        parse_rows(rows, options=ReadOptions(pairs=True))
    assert what in caught.value.what
    assert any(isinstance(part, DataError) for part in row_faults(rows)), "an upload is checked, too"
    if row["chosen"] == "b":
        assert len(parse_rows(rows)) == 2, "where the rejected answer is not used, it is not looked at"


UNCOMPARABLE = [
    ({"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD, ASKED, BAD]}, "begins with the other one whole"),
    ({"chosen": [ASKED, GOOD], "rejected": [EARLIER[0], BAD]}, "differ before the assistant's turn"),
]


@pytest.mark.parametrize(("row", "what"), UNCOMPARABLE, ids=[what for _, what in UNCOMPARABLE])
def test_conversations_that_cannot_be_compared(row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what):
        encode_pairs(read(row, pairs=True), Template("chat"), tiny_tokenizer())


def test_rows_without_rejected_answers_are_no_pairs() -> None:
    rows = read({"prompt": "a", "completion": "b"}, pairs=True)
    with pytest.raises(DataError, match="no rejected answer"):
        encode_pairs(rows, Template("text", "{prompt}"), tiny_tokenizer())


def test_the_same_answer_twice_is_counted() -> None:
    rows = read({"prompt": "a", "chosen": "b", "rejected": "b"}, TEXTS[0], pairs=True)
    assert same_answers(encode_pairs(rows, Template("text", "{prompt}"), tiny_tokenizer())) == 1


@pytest.mark.parametrize("answered", [True, False])
def test_prompts_keep_their_rows(answered: bool) -> None:
    answer = {"completion": "4"} if answered else {}
    texts = read({"prompt": "2 + 2?", "limit": 7, "tags": ["sum"], **answer}, prompts=True)
    (row,) = encode_prompts(texts, Template("text", "{prompt}"), tiny_tokenizer())
    assert (decode(row.ids, tiny_tokenizer()), set(row.mask)) == ("2 + 2?", {False})
    assert row.record is not None and row.record.source == {"prompt": "2 + 2?", "limit": 7, "tags": ["sum"], **answer}
    turns = {"prompt": [ASKED], **({"completion": [GOOD]} if answered else {})}
    (row,) = encode_prompts(read(turns, prompts=True), Template("chat"), tiny_tokenizer())
    assert decode(row.ids, tiny_tokenizer()).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
