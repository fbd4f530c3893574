"""Metrics by name: built-in ones, and functions that the user wrote.

    load_custom_metrics(["f1", "rules.py:is_polite", "my_package.scores:overlap"])

A user's function takes an answer and its references (an empty list if the row has none) and returns a number:

    def is_polite(answer: str, references: list[str]) -> float: ...

It is Python code from a file or an installed module, named on the command line. No config file, card, data set or
request can name one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from softprompt.errors import ConfigError
from softprompt.evaluation.metrics import Score, bleu, bootstrap, exact_match, rouge_l, token_f1, valid_json
from softprompt.user_function import load_user_function

Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], Score]  # answers, and the references of each
RowMetric = Callable[[str, list[str]], float]  # one answer, and its references

BUILT_IN_METRICS: dict[str, Metric] = {
    "bleu": bleu,
    "exact_match": exact_match,
    "f1": token_f1,
    "rouge_l": rouge_l,
    "valid_json": lambda answers, references: valid_json(answers),
}
_FORMAT = "FILE.py:function or package.module:function, a function of one answer and its references"


def load_custom_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics with these names.

    Raises ConfigError for a name that is not a metric, and for a file, module or function that cannot be loaded.
    """
    metrics: dict[str, Metric] = {}
    for name in names:
        place, function = name.rpartition(":")[0], name.rpartition(":")[2]
        if name in BUILT_IN_METRICS:
            metrics[name] = BUILT_IN_METRICS[name]
        elif place and function:
            loaded = load_user_function(name, "metric", _FORMAT)
            metrics[name] = row_by_row(cast(RowMetric, loaded), name)
        else:
            known = ", ".join(BUILT_IN_METRICS)
            raise ConfigError("no such metric", where="--metric", expected=f"{known}, or {_FORMAT}", got=name)
    return metrics


def row_by_row(function: RowMetric, name: str) -> Metric:
    """A metric that is the mean of a function's values over all rows, with the interval over resampled rows.

    The metric raises ConfigError where the function fails or returns no finite number.
    """

    def value(answer: str, references: Sequence[str]) -> float:
        try:
            number = float(function(answer, list(references)))
        except Exception as error:  # a user's own code may raise anything
            got = f"{type(error).__name__}: {error}"
            raise ConfigError("the metric failed", where=name, expected="a number", got=got) from error
        if not math.isfinite(number):
            raise ConfigError("the metric is not a finite number", where=name, got=f"{number} for {answer!r}")
        return number

    def scored(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
        values = [value(answer, accepted) for answer, accepted in zip(answers, references, strict=True)]
        return bootstrap(len(values), lambda rows: sum(values[row] for row in rows) / len(values))

    return scored


def scores_of(
    metrics: Mapping[str, Metric], answers: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Score]:
    """The score of every metric on the same answers."""
    return {name: metric(answers, references) for name, metric in metrics.items()}
