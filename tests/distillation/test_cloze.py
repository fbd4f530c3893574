"""Inputs whose answers stand in the text: every answer is there, and the input does not give it away."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.distillation.cloze import (
    MAX_ANSWER_WORDS,
    MAX_CLOZE_TOKENS,
    _few_shot_ids,
    answer_spans,
    cloze,
    cloze_queries,
    continuations,
    sample_evenly,
    split_sentences,
)
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from tests.support.tiny import tiny_lm

TEXT = """# Bridges

The old bridge was opened in 1932 by the mayor, Anna Lund. It carries
40,000 cars a day over the river.

Copper is mined in the north, while the south lives on fishing."""


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny_lm("llama")


def test_words_that_may_be_asked_for() -> None:
    sentence = "The old bridge was opened in 1932 by the mayor, Anna Lund."
    found = [answer for answer, _ in answer_spans(sentence)]
    assert found == ["bridge", "opened", "1932", "mayor", "Anna Lund"]
    assert answer_spans("It is so.") == []


@given(st.text(st.sampled_from("abC1 .,-'é"), max_size=60))
def test_every_answer_stands_where_it_says(sentence: str) -> None:
    for answer, start in answer_spans(sentence):
        assert answer and sentence[start : start + len(answer)] == answer
        assert len(answer.split(" ")) <= MAX_ANSWER_WORDS


def test_sentences() -> None:
    assert split_sentences(TEXT)[:3] == [
        "# Bridges",
        "The old bridge was opened in 1932 by the mayor, Anna Lund.",
        "It carries 40,000 cars a day over the river.",
    ]


def test_a_gap() -> None:
    sentence = "It is the bridge of the town."
    assert cloze(sentence, "bridge", 10) == ("cloze", "Fill in the gap: It is the ___ of the town.", "bridge")


def test_a_passage_goes_on_as_the_text_does() -> None:
    whole = " ".join(TEXT.split())
    found = continuations(TEXT, 12, lambda rest: " ".join(rest.split()[:5]), random.Random(0))
    assert len(found) >= 9  # not the last sentence, where nothing is left
    for kind, opening, rest in found:
        assert kind == "continuation" and f"{opening.removeprefix('Go on: ')} {rest}" in whole


def test_every_one_before_any_again() -> None:
    found = sample_evenly("abc", 7, random.Random(0))
    assert sorted(found[:3]) == sorted(found[3:6]) == ["a", "b", "c"] and len(found) == 7
    assert sample_evenly("", 3, random.Random(0)) == []


def test_details_of_a_text(lm: FrozenLM) -> None:
    found = cloze_queries(lm, TEXT, 12, Sampling(8, 1.0, seed=1), 10, random.Random(0))
    assert 0 < len(_few_shot_ids(lm, 150)) <= 150 and _few_shot_ids(lm, 20) == (), (
        "its context has no room for all examples"
    )
    kinds = [kind for kind, _, _ in found]
    assert (
        kinds.count("detail") >= 2
        and kinds.count("cloze") >= 2
        and kinds.count("continuation") >= 2
        and len(found) <= 12
    )
    whole = " ".join(TEXT.split())
    for kind, asked, answer in found:
        assert answer in whole and len(lm.encode(answer)) < 10 + (kind != "continuation") * 90
        assert len(lm.encode(asked)) <= MAX_CLOZE_TOKENS
    again = cloze_queries(lm, TEXT, 12, Sampling(8, 1.0, seed=1), 10, random.Random(0))
    assert again == found
    assert cloze_queries(lm, "", 4, Sampling(8), 10, random.Random(0)) == []
