"""Choices of a row's own, ranked together, equal each of them scored alone; several labels are compared as sets."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.data.records import Record
from softprompt.data.template import Template
from softprompt.errors import DataError
from softprompt.evaluation import label_ranking
from softprompt.evaluation.ensemble import vote
from softprompt.evaluation.evaluate import evaluate
from softprompt.evaluation.label_ranking import rank_choices
from softprompt.evaluation.metrics import label_scores
from softprompt.models.frozen_lm import FrozenLM
from tests.support.labels import brute_force, formatted
from tests.support.rows import records
from tests.support.tiny import tiny_lm

TEMPLATE = Template("text", "Q: {prompt}\nA:")
CHOICES = (["good", "bad", "so-so"], ["a", "ab", "abc"], ["one of a kind", "one of two"], ["x", "y", "z", "w"])


def rows() -> list[Record]:
    asked = [{"question": "why? " * (i + 1), "choices": c, "answer": i % len(c)} for i, c in enumerate(CHOICES)]
    return records(*asked)


def one_by_one(lm: FrozenLM, form: str) -> list[torch.Tensor]:
    """Each row on its own, each choice in a pass of its own."""
    totals = []
    for row in rows():
        begins = any(a != b and b.startswith(a) for a in row.choices for b in row.choices)
        totals.append(brute_force(lm, formatted(lm, form, TEMPLATE), [row], row.choices, end=begins)[0])
    return totals


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(
    ("family", "form"), [("llama", "kv"), ("llama", "embedding"), ("gemma2", "kv"), ("llama", "none")]
)
def test_ranked_together_is_one_by_one(family: str, form: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small:
        monkeypatch.setattr(label_ranking, "_TOKENS", 30)
        monkeypatch.setattr(label_ranking, "HEAD_POSITIONS", 1)
    lm = tiny_lm(family)
    ranked = rank_choices(lm, formatted(lm, form, TEMPLATE), rows())
    for (totals, lengths), wanted, row in zip(ranked, one_by_one(lm, form), rows(), strict=True):
        assert_close(totals, wanted, rtol=1e-4, atol=1e-3)
        assert len(lengths) == len(row.choices)


def test_the_likeliest_choice_is_the_answer() -> None:
    lm = tiny_lm("llama")
    found = evaluate(lm, formatted(lm, "kv", TEMPLATE), rows())
    best = [int(totals.argmax()) for totals in one_by_one(lm, "kv")]
    assert list(found.answers) == [choices[i] for choices, i in zip(CHOICES, best, strict=True)]
    hits = [i == n % len(choices) for n, (i, choices) in enumerate(zip(best, CHOICES, strict=True))]
    assert found.scores["accuracy"].value == sum(hits) / len(hits)
    assert {"accuracy", "accuracy_norm"} == found.scores.keys()
    assert [len(row) for row in found.log_likelihoods] == [len(choices) for choices in CHOICES]
    together = vote([found, found], rows())
    assert (together.answers, together.scores["accuracy"]) == (found.answers, found.scores["accuracy"])


def test_a_row_that_does_not_say_what_is_right() -> None:
    (row,) = records({"question": "why?", "choices": ["a", "b"]}, require_target=False)
    with pytest.raises(DataError, match="which choice is right"):
        evaluate(tiny_lm("llama"), formatted(tiny_lm("llama"), "kv", TEMPLATE), [row])


def test_several_labels_are_sets() -> None:
    truths = [("a, b",), ("c",), ("none",), ("a, c",)]
    scores = label_scores(["b , a", "c, d", "none", "b"], truths)
    assert scores["exact_match"].value == 0.5
    shared, both = 2 + 1 + 1 + 0, 4 + 3 + 2 + 3
    assert scores["f1"].value == pytest.approx(2 * shared / both)
