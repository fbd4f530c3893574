"""Inputs: the model's own words cleaned, and rows as turns of a conversation, each for the piece it is about."""

from __future__ import annotations

import pytest

from softprompt.data.records import Message
from softprompt.data.template import Template
from softprompt.distillation.queries import nearest_chunk, query_record
from softprompt.distillation.self_study import clean
from softprompt.formatting.text_prompt import as_turns
from tests.support.rows import one


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ('"What is the fee?"', "What is the fee?"),
        ("\n 1. Question: What is the fee?\nAnswer: 5", "What is the fee?"),
        ("- **Message**", "**Message**"),
        ("  \n\t", ""),
        ("12 days have passed, where is it?", "12 days have passed, where is it?"),
    ],
)
def test_what_the_model_wrote(written: str, wanted: str) -> None:
    assert clean(written) == wanted


def test_rows_as_turns() -> None:
    chat, asked = Template("chat"), Template("text", "Q: {prompt}")
    row = one({"prompt": "Where is it?", "completion": "Here.", "references": ["There."]})
    turns = as_turns(row, chat)
    assert turns.messages == (Message("user", "Where is it?"), Message("assistant", "Here."))
    assert (turns.kind, turns.references, turns.target) == ("messages", ("Here.", "There."), "Here.")
    assert as_turns(row, asked) is row
    pair = one({"text": "It rains.", "text2": "It is wet.", "label": "yes"})
    assert as_turns(pair, chat).messages[0].content == "It rains.\nIt is wet."


def test_a_text_as_a_record() -> None:
    assert query_record("Hi", Template("chat")).messages == (Message("user", "Hi"),)
    assert dict(query_record("Hi", Template("text", "{prompt}\n")).fields) == {"prompt": "Hi"}


def test_the_nearest_piece_shares_the_rarest_words() -> None:
    pieces = ["The card has a fee of the bank.", "The transfer takes the whole day.", "The moon."]
    nearest = nearest_chunk(pieces)
    assert nearest("the the the transfer?") == 1
    assert nearest("What is the fee?") == 0
