"""Scores of answers against references, each with a 95 % confidence interval. Needs no model.

BLEU and ROUGE-L need the extra `eval` (sacrebleu and rouge-score); all others need no further package.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from softprompt.errors import missing_extra
from softprompt.evaluation.bleu import BleuCounts

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

# A word of any script; kana and Han characters are words of their own.
SCORED_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
ARTICLES = {"a", "an", "the"}
RESAMPLES = 500  # of the rows, for a bootstrap interval
Z = 1.959964  # standard deviations of a two-sided 95 % interval


@dataclass(frozen=True)
class Score:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def proportion(hits: Sequence[bool]) -> Score:
    """Share of hits with Wilson's score interval (Wilson 1927), which stays inside [0, 1] for few rows too."""
    n, p = len(hits), sum(hits) / len(hits)
    center = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return Score(p, min(p, max(0.0, center - half)), max(p, min(1.0, center + half)))  # p: rounding at 0 and 1


def bootstrap(rows: int, score: Callable[[Sequence[int]], float], seed: int = 0) -> Score:
    """`score` of all row numbers, with the percentile interval over resampled rows (Efron 1979)."""
    generator = np.random.default_rng(seed)
    values = [score(generator.integers(0, rows, rows).tolist()) for _ in range(RESAMPLES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return Score(score(range(rows)), float(low), float(high))


def exact_match(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Share of answers equal to one of their references, ignoring white space at both ends."""
    pairs = zip(answers, references, strict=True)
    return proportion([answer.strip() in {r.strip() for r in accepted} for answer, accepted in pairs])


def token_f1(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Mean F1 of the words that an answer shares with its best reference, in 0…1, ignoring case, punctuation and
    articles (Rajpurkar et al.: SQuAD. 2016. https://arxiv.org/abs/1606.05250)."""
    pairs = zip(answers, references, strict=True)
    values = np.array([max(_word_f1(answer, reference) for reference in accepted) for answer, accepted in pairs])
    return bootstrap(len(values), lambda rows: float(values[list(rows)].mean()))


def _word_f1(answer: str, reference: str) -> float:
    bags = [
        Counter(word for word in SCORED_WORD.findall(text.lower()) if word not in ARTICLES)
        for text in (answer, reference)
    ]
    sizes = [bag.total() for bag in bags]
    if not all(sizes):
        return float(sizes[0] == sizes[1])
    return 2 * (bags[0] & bags[1]).total() / sum(sizes)


def valid_json(answers: Sequence[str]) -> Score:
    """Share of answers that parse as JSON."""
    return proportion([_parses(answer) for answer in answers])


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Corpus BLEU in 0…100 (sacrebleu, its default tokenizer), with any number of references per row.

    The interval resamples the rows' n-gram counts. Raises MissingExtraError if sacrebleu is not installed.
    """
    return bootstrap(len(answers), BleuCounts(answers, references).score)


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Mean ROUGE-L F1 in 0…1 (rouge-score, no stemming) of each answer and its best reference.

    Words are those of every script, in lower case; rouge-score's own tokenizer drops all but a-z and 0-9. Raises
    MissingExtraError if rouge-score is not installed.
    """
    scorer = _rouge_scorer()
    values = np.array(
        [
            max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in accepted)
            for answer, accepted in zip(answers, references, strict=True)
        ]
    )
    return bootstrap(len(values), lambda rows: float(values[list(rows)].mean()))


def _rouge_scorer() -> RougeScorer:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing_extra("rouge-score", "eval", where="metric rouge_l") from error
    return RougeScorer(["rougeL"], tokenizer=_WordTokenizer())


def mean_loss(sums: Sequence[float], tokens: Sequence[int]) -> Score:
    """Mean -log p per token in nats, from each row's sum of -log p and number of tokens."""
    total, count = np.array(sums), np.array(tokens)
    return bootstrap(len(sums), lambda rows: float(total[list(rows)].sum() / count[list(rows)].sum()))


def generation_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """Every score that applies: exact match, BLEU, ROUGE-L, and valid JSON if every reference is JSON.

    Scores whose package is not installed are left out, see `missing_scores`.
    """
    scores = {"exact_match": exact_match(answers, references)}
    if all(r.strip()[:1] in "{[" and _parses(r) for accepted in references for r in accepted):
        scores["valid_json"] = valid_json(answers)
    missing = missing_scores()
    optional = {"bleu": bleu, "rouge_l": rouge_l}
    return scores | {name: score(answers, references) for name, score in optional.items() if name not in missing}


def label_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """Scores of several labels a row, written between commas in any order: exact match of the sets, and micro F1.

    F1 counts the labels of all rows together, and its interval resamples the rows.
    """
    pairs = [
        (_label_set(answer), _label_set(accepted[0])) for answer, accepted in zip(answers, references, strict=True)
    ]
    counts = np.array([[len(answer & truth), len(answer) + len(truth)] for answer, truth in pairs])

    def micro_f1(rows: Sequence[int]) -> float:
        shared, both = counts[list(rows)].sum(0).tolist()
        return 2 * shared / both

    exact = proportion([answer == truth for answer, truth in pairs])
    return {"exact_match": exact, "f1": bootstrap(len(pairs), micro_f1)}


def _label_set(text: str) -> frozenset[str]:
    """The labels in a text; an empty text holds one, the empty one."""
    return frozenset(label.strip() for label in text.split(","))


def missing_scores() -> dict[str, str]:
    """The scores that `generation_scores` leaves out, each with the module that it needs and that is not installed."""
    needs = {"bleu": "sacrebleu", "rouge_l": "rouge_score"}
    return {name: module for name, module in needs.items() if importlib.util.find_spec(module) is None}


class _WordTokenizer:
    """A tokenizer for rouge-score; for ASCII text it is the same as rouge-score's own."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return SCORED_WORD.findall(text.lower())


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
