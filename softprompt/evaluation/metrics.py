"""Scores of answers against references, each with a 95 % confidence interval. Knows nothing of models."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

Z = 1.959964  # two-sided 95 %
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")  # kana and Han one by one
RESAMPLES = 500
ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Score:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def proportion(hits: Sequence[bool]) -> Score:
    """Share of hits with Wilson's score interval (Wilson 1927), which stays inside [0, 1] for few rows too."""
    n, p = len(hits), sum(hits) / len(hits)
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return Score(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))  # p: rounding at 0 and 1


def bootstrap(rows: int, score: Callable[[Sequence[int]], float], seed: int = 0) -> Score:
    """`score` of all row numbers, with the percentile interval over resampled rows (Efron 1979)."""
    draw = np.random.default_rng(seed)
    values = [score(draw.integers(0, rows, rows).tolist()) for _ in range(RESAMPLES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return Score(score(range(rows)), float(low), float(high))


def exact_match(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """An answer counts if it equals one of its references, white space at both ends aside."""
    pairs = zip(answers, references, strict=True)
    return proportion([answer.strip() in {r.strip() for r in right} for answer, right in pairs])


def token_f1(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Mean F1 of the words an answer shares with its best reference, in 0…1; case, punctuation and articles aside
    (Rajpurkar et al.: SQuAD. 2016. https://arxiv.org/abs/1606.05250)."""
    pairs = zip(answers, references, strict=True)
    values = np.array([max(_shared(answer, reference) for reference in right) for answer, right in pairs])
    return bootstrap(len(values), lambda rows: float(values[list(rows)].mean()))


def _shared(answer: str, reference: str) -> float:
    bags = [
        Counter(word for word in WORD.findall(text.lower()) if word not in ARTICLES) for text in (answer, reference)
    ]
    sizes = [bag.total() for bag in bags]
    if not all(sizes):
        return float(sizes[0] == sizes[1])
    return 2 * (bags[0] & bags[1]).total() / sum(sizes)


def valid_json(answers: Sequence[str]) -> Score:
    """Share of answers that parse as JSON."""
    return proportion([_parses(answer) for answer in answers])


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Corpus BLEU in 0…100 (sacrebleu, its default tokeniser), any number of references per row.

    The interval resamples the rows' n-gram statistics.
    """
    most = max(map(len, references))
    columns: list[Any] = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    metric = sacrebleu.BLEU()
    statistics = np.array(metric._extract_corpus_statistics(list(answers), columns))
    return bootstrap(
        len(answers),
        lambda rows: metric._compute_score_from_stats(statistics[list(rows)].sum(0).tolist()).score,
    )


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Mean ROUGE-L F1 in 0…1 (rouge-score, no stemming), the best reference of each row.

    Words are those of every script, lower case; rouge-score's own tokeniser drops all but a-z and 0-9.
    """
    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    values = np.array(
        [
            max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in right)
            for answer, right in zip(answers, references, strict=True)
        ]
    )
    return bootstrap(len(values), lambda rows: float(values[list(rows)].mean()))


def mean_loss(sums: Sequence[float], tokens: Sequence[int]) -> Score:
    """Loss per token of rows with these sums of -log p and numbers of tokens, in nats."""
    total, count = np.array(sums), np.array(tokens)
    return bootstrap(len(sums), lambda rows: float(total[list(rows)].sum() / count[list(rows)].sum()))


def generation_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """All that applies: exact match, BLEU, ROUGE-L, and valid JSON if every reference is JSON."""
    scores = {"exact_match": exact_match(answers, references)}
    if all(r.strip()[:1] in "{[" and _parses(r) for right in references for r in right):
        scores["valid_json"] = valid_json(answers)
    return scores | {"bleu": bleu(answers, references), "rouge_l": rouge_l(answers, references)}


class _Words:
    """A tokeniser for rouge-score; for ASCII text it is the same as its own."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return WORD.findall(text.lower())


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
