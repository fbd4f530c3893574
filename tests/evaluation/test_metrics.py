"""Scores against published values and the libraries they are taken from."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from softprompt.errors import MissingExtraError
from softprompt.evaluation.metrics import (
    Score,
    bleu,
    bootstrap,
    exact_match,
    generation_scores,
    mean_loss,
    missing_scores,
    proportion,
    rouge_l,
    token_f1,
    valid_json,
)
from tests.support.missing import uninstall

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", ",", "fast"]
answers = st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), min_size=1, max_size=6)


def hits(of: int, right: int) -> list[bool]:
    return [i < right for i in range(of)]


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(right: int, of: int, low: float, high: float) -> None:
    """Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3."""
    score = proportion(hits(of, right))
    assert score.value == right / of
    assert (score.low, score.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 3000), st.data())
def test_wilson_contains_the_share_and_mirrors(of: int, data: st.DataObject) -> None:
    right = data.draw(st.sampled_from([0, of]) | st.integers(0, of))
    score, mirror = proportion(hits(of, right)), proportion(hits(of, of - right))
    assert 0.0 <= score.low <= score.value <= score.high <= 1.0
    assert score.low < score.high
    assert (1 - mirror.high, 1 - mirror.low) == (pytest.approx(score.low), pytest.approx(score.high))


def test_exact_match_takes_any_reference_and_no_outer_space() -> None:
    references = [["yes", "yeah"]] * 6
    score = exact_match([" yeah\n", "yes", "Yes", "yes.", "", "y es"], references)
    assert score == proportion(hits(6, 2))
    assert exact_match(["a"], [[" a "]]).value == 1.0
    with pytest.raises(ValueError, match="argument"):
        exact_match(["a", "b"], [["a"]])


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('{"a": [1, null]}', True),
        (" 3 ", True),
        ('"x"', True),
        ("{'a': 1}", False),
        ('{"a": 1', False),
        ('{"a": 1} thanks', False),
        ("", False),
        ("[" * 100_000, False),
    ],
)
def test_valid_json(text: str, good: bool) -> None:
    assert valid_json([text]).value == float(good)


def columns(references: Sequence[Sequence[str]]) -> list[Any]:
    """sacrebleu wants the first references of all rows, then the second ones."""
    most = max(map(len, references))
    return [[row[i] if i < len(row) else None for row in references] for i in range(most)]


def with_references(made: list[str], seed: int) -> list[list[str]]:
    """One to three references a row, some of them near the answer."""
    draw = random.Random(seed)
    rows = []
    for answer in made:
        near = [word for word in answer.split() if draw.random() < 0.8] + draw.choices(WORDS, k=draw.randint(1, 3))
        others = [" ".join(draw.choices(WORDS, k=5)) for _ in range(draw.randint(0, 2))]
        rows.append(draw.sample([" ".join(near), *others], 1 + len(others)))
    return rows


@settings(deadline=None, max_examples=15)
@given(answers, st.integers(0, 1000))
def test_bleu_is_that_of_sacrebleu(made: list[str], seed: int) -> None:
    references = with_references(made, seed)
    score = bleu(made, references)
    assert score.value == pytest.approx(sacrebleu.corpus_bleu(made, columns(references)).score, abs=1e-9)
    assert 0 <= score.low <= score.value <= score.high <= 100 + 1e-9


def test_bleu_of_the_references_is_100() -> None:
    rows = ["the cat sat on the mat", "a dog ran fast on the mat"]
    assert bleu(rows, [[row, "something else"] for row in rows]).value == pytest.approx(100)


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    assert rouge_l(["the cat sat"], [["the cat"]]).value == pytest.approx(0.8)  # precision 2/3, recall 1
    assert rouge_l(["cats sat"], [["cat sat"]]).value == pytest.approx(0.5)  # no stemming
    assert rouge_l(["the sat cat"], [["the cat sat"]]).value == pytest.approx(2 / 3)  # order counts


def test_rouge_l_takes_the_best_reference_of_each_row() -> None:
    assert rouge_l(["the cat"], [["dog", "the cat", "the"]]).value == 1.0
    assert rouge_l(["the cat", "dog"], [["dog", "the cat"], ["mat", "on"]]).value == 0.5


def test_mean_loss_weighs_tokens_not_rows() -> None:
    assert mean_loss([2.0, 30.0], [1, 9]).value == pytest.approx(3.2)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), min_size=1, max_size=8), answers, st.integers(0, 99))
def test_intervals_contain_the_value(rows: list[tuple[float, int]], made: list[str], seed: int) -> None:
    for score in (mean_loss(*zip(*rows, strict=True)), rouge_l(made, with_references(made, seed))):
        slack = 1e-12 * max(1.0, score.value)
        assert score.low - slack <= score.value <= score.high + slack


def test_the_bootstrap_interval_is_that_of_the_normal_law() -> None:
    draw = random.Random(0)
    values = [draw.gauss(5.0, 2.0) for _ in range(2000)]
    score = bootstrap(len(values), lambda rows: sum(values[i] for i in rows) / len(rows))
    half = 1.96 * 2.0 / math.sqrt(len(values))
    assert score.value == pytest.approx(sum(values) / len(values))
    assert score.value - score.low == pytest.approx(half, rel=0.12)
    assert score.high - score.value == pytest.approx(half, rel=0.12)


def test_the_bootstrap_draws_alike_every_time_and_never_all_rows_alike() -> None:
    drawn: list[list[int]] = []

    def score(rows: Sequence[int]) -> float:
        drawn.append(list(rows))
        return float(rows[0])

    first = bootstrap(5, score, seed=3)
    assert bootstrap(5, score, seed=3) == first
    assert first.value == 0.0
    assert all(len(rows) == 5 and set(rows) <= set(range(5)) for rows in drawn)
    assert len(set(map(tuple, drawn))) > 100
    assert list(range(5)) in drawn


CHOICES: list[tuple[list[list[str]], bool]] = [
    ([['{"a": 1}'], ["[1, 2]"]], True),
    ([['{"a": 1}', ' {"a": 2}']], True),
    ([['{"a": 1}'], ["no"]], False),
    ([['{"a": 1}', "no"]], False),
    ([["3"], ["true"]], False),  # they would parse, but nobody means JSON
    ([["{not json}"]], False),
    ([[""]], False),
]


@pytest.mark.parametrize(("references", "json"), CHOICES)
def test_json_is_scored_only_where_every_reference_is_json(references: list[list[str]], json: bool) -> None:
    made = ['{"a": 1}'] * len(references)
    scores = generation_scores(made, references)
    assert set(scores) == {"exact_match", "bleu", "rouge_l"} | ({"valid_json"} if json else set())
    single: dict[str, Callable[[], Score]] = {
        "exact_match": lambda: exact_match(made, references),
        "bleu": lambda: bleu(made, references),
        "rouge_l": lambda: rouge_l(made, references),
        "valid_json": lambda: valid_json(made),
    }
    assert {name: single[name]() for name in scores} == scores


def test_rouge_l_knows_every_script() -> None:
    """rouge-score's own tokeniser drops all but a-z and 0-9; for ASCII text nothing changes."""
    cases = (("да, конечно", "да нет", "ні"), ("東京です", "東京都", "大阪"), ("élève fort", "élève", "eleve"))
    for right, near, far in cases:
        values = [rouge_l([answer], [[right]]).value for answer in (right, near, far)]
        assert values[0] == 1 and 0 < values[1] < 1 and values[2] == 0, (right, values)
    reference_scorer = RougeScorer(["rougeL"])
    for answer, right in (("The cat_sat on 2 mats", "a CAT sat, on two mats!"), ("x", "x y"), ("", "a")):
        assert rouge_l([answer], [[right]]).value == reference_scorer.score(right, answer)["rougeL"].fmeasure


@pytest.mark.parametrize(
    ("answer", "references", "wanted"),
    [
        ("The Saxon Garden!", ["saxon garden"], 1.0),
        ("in the garden", ["the Saxon garden"], 0.5),  # "in garden" and "saxon garden" share one word of two and two
        ("garden garden", ["garden"], 2 / 3),  # a word counts as often as it is there
        ("nothing", ["garden", "nothing at all"], 0.5),  # the best reference
        ("", ["garden"], 0.0),
        ("the", ["a"], 1.0),
    ],
)
def test_token_f1(answer: str, references: list[str], wanted: float) -> None:
    assert token_f1([answer], [references]).value == pytest.approx(wanted)


def test_without_the_extra_all_other_scores_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    made, references = ["{}", "the cat"], [["{}"], ["[1]"]]
    complete = generation_scores(made, references)
    assert missing_scores() == {}
    uninstall("rouge_score", monkeypatch)
    assert generation_scores(made, references) == {n: score for n, score in complete.items() if n != "rouge_l"}
    uninstall("sacrebleu", monkeypatch)
    assert missing_scores() == {"bleu": "sacrebleu", "rouge_l": "rouge_score"}
    rest = {"exact_match": complete["exact_match"], "valid_json": complete["valid_json"]}
    assert generation_scores(made, references) == rest
    assert token_f1(made, references).value == 0.5
    for metric in (bleu, rouge_l):
        with pytest.raises(MissingExtraError, match=r"pip install 'softprompt\[eval\]'"):
            metric(made, references)
