"""The majority, its ties, and who may not vote together."""

from __future__ import annotations

import pytest
import torch

from softprompt.errors import ConfigError
from softprompt.evaluation.ensemble import check_vote, vote
from softprompt.evaluation.evaluate import Evaluation, evaluate
from softprompt.evaluation.metrics import generation_scores, proportion
from softprompt.inference.sampling import Sampling
from tests.support.artifacts import card
from tests.support.labels import TEXTS, formatted
from tests.support.rows import records
from tests.support.tiny import tiny_lm

CLASSES = ("x", "y", "z")


def labelled(*rows: tuple[float, float, float]) -> Evaluation:
    """One prompt's log-likelihoods of x, y, z; it answers the likeliest."""
    answers = tuple(CLASSES[max(range(3), key=row.__getitem__)] for row in rows)
    return Evaluation({}, len(rows), answers, CLASSES, rows)


def test_the_majority_of_labels_wins() -> None:
    """Even against a single prompt that is surer than all others."""
    prompts = [labelled((-1, -2, -3)), labelled((-1, -2, -3)), labelled((-999, -1, -2))]
    rows = records({"text": "t", "label": "x"})
    result = vote(prompts, rows)
    assert result.answers == ("x",) and result.rows == 1
    assert result.scores == {"accuracy": proportion([True])}


def test_ties_go_to_the_likelier_of_the_tied_labels() -> None:
    """z is likeliest in sum, but nobody's choice."""
    prompts = [labelled((-1, -9, -1.5), (-1, -3, -2)), labelled((-9, -2, -2.5), (-4, -1, -2))]
    rows = records({"text": "t", "label": "y"}, {"text": "u", "label": "z"})
    result = vote(prompts, rows)
    assert result.answers == ("x", "y")
    assert vote(prompts[::-1], rows).answers == ("x", "y"), "the order of the prompts does not matter"
    assert result.scores["accuracy"] == proportion([False, False])
    assert vote([labelled((-1, -9, -3)), labelled((-9, -0.5, -3))], rows[:1]).answers == ("y",)


def test_the_most_frequent_answer_wins() -> None:
    answers = [("a", "b", "c"), ("b ", "b", "d"), ("\nb", "a", "e")]
    rows = records(*({"prompt": f"q{i}", "completion": target} for i, target in enumerate(("b", "b", "e"))))
    result = vote([Evaluation({}, 3, tuple(said)) for said in answers], rows)
    assert result.answers == ("b", "b", "c"), "all different: the first prompt's"
    assert result.scores == generation_scores(["b", "b", "c"], [("b",), ("b",), ("e",)])
    tied = [Evaluation({}, 1, (said,)) for said in ("c", "a", "b", "b", "a")]
    assert vote(tied, rows[:1]).answers == ("a",), "of the tied ones the one that was said first"


@pytest.mark.parametrize("label", [True, False])
def test_real_prompts(label: bool) -> None:
    """Against the plain rule, on what three prompts of noise really answer."""
    lm, field = tiny_lm("llama"), "label" if label else "completion"
    rows = records(*({"text" if label else "prompt": text, field: "b"} for text in TEXTS))
    formatted_prompts = [formatted(lm, form) for form in ("kv", "embedding", "none")]
    if not label:
        template = type(formatted_prompts[0].template)("text", "Text: {prompt}\n")
        formatted_prompts = [formatted(lm, form, template) for form in ("kv", "embedding", "none")]
    each = [
        evaluate(lm, of, rows, labels=("a", "b", "cc") if label else (), sampling=Sampling(2))
        for of in formatted_prompts
    ]
    result = vote(each, rows)
    for i, answer in enumerate(result.answers):
        said = [one.answers[i].strip() for one in each]
        assert said.count(answer) == max(said.count(other) for other in said)
    if label:
        for one in each:
            assert torch.tensor(one.log_likelihoods).argmax(1).tolist() == [one.labels.index(a) for a in one.answers]
    assert vote(each[:1], rows).answers == tuple(answer.strip() for answer in each[0].answers)


def test_who_may_not_vote() -> None:
    a, b, other = card(labels=("x", "y")), card(labels=("x", "y")), card(labels=("x", "z"))
    rows, text = records({"text": "t", "label": "x"}), records({"text": "t"})
    check_vote({"a": a, "b": b}, rows)
    with pytest.raises(ConfigError, match=r"(?s)needs several.*a,b,c --vote"):
        check_vote({"a": a}, rows)
    with pytest.raises(ConfigError, match=r"(?s)a, b: .*different classes.*\['x', 'y'\] and \['x', 'z'\]"):
        check_vote({"a": a, "b": other}, rows)
    with pytest.raises(ConfigError, match="no answers to vote on"):
        check_vote({"a": a, "b": b}, text)
    with pytest.raises(ConfigError, match="no answers to vote on"):
        vote([Evaluation({}, 1), Evaluation({}, 1)], text)
    with pytest.raises(ConfigError, match="different classes"):
        vote([Evaluation({}, 1, ("x",), ("x", "y"), ((0, 1),)), labelled((-1, -2, -3))], rows)
