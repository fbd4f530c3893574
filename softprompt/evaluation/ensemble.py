"""Ensembles of soft prompts of one task: each prompt answers, and the majority wins.

Lester, Al-Rfou, Constant: The Power of Scale for Parameter-Efficient Prompt Tuning. EMNLP 2021, section 6 ("Prompt
Ensembling"). https://arxiv.org/abs/2104.08691
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from softprompt.data.records import Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.errors import ConfigError
from softprompt.evaluation import metrics
from softprompt.evaluation.evaluate import Evaluation, answer_scores
from softprompt.prompts.card import Card


def vote(evaluations: Sequence[Evaluation], records: Sequence[Record]) -> Evaluation:
    """The ensemble's answers and their scores.

    Labels: the label with most votes; ties are decided by the log-likelihood summed over all prompts. Generated
    answers: the most frequent answer, ignoring white space at both ends; a tie goes to the first prompt in order.

    Args:
        evaluations: of each soft prompt, on the same rows.
        records: those rows.

    Raises ConfigError for rows of plain text, which have no answers, and for prompts of different classes.
    """
    if not all(evaluation.answers for evaluation in evaluations):
        raise _no_answers()
    columns = list(zip(*(evaluation.answers for evaluation in evaluations), strict=True))
    if not shape_of(records[0]).has_classes:
        answers = [_most_frequent([answer.strip() for answer in answers]) for answers in columns]
        return Evaluation(answer_scores(answers, records), len(records), tuple(answers))
    classes = evaluations[0].labels
    if any(evaluation.labels != classes for evaluation in evaluations):
        raise _other_classes("the prompts", [list(evaluation.labels) for evaluation in evaluations])
    votes_RC = torch.tensor([[column.count(label) for label in classes] for column in columns])
    sums_RC = torch.tensor([evaluation.log_likelihoods for evaluation in evaluations], dtype=torch.float64).sum(0)
    tied_RC = votes_RC == votes_RC.max(1, keepdim=True).values
    answers = [classes[i] for i in sums_RC.masked_fill(~tied_RC, -torch.inf).argmax(1).tolist()]
    hits = [answer == record.target for answer, record in zip(answers, records, strict=True)]
    return Evaluation({"accuracy": metrics.proportion(hits)}, len(records), tuple(answers))


def check_vote(cards: Mapping[str, Card], records: Sequence[Record]) -> None:
    """Raise ConfigError, before anything runs, if these soft prompts cannot vote on these rows."""
    if len(cards) < 2:
        raise ConfigError(
            "a vote needs several soft prompts", got=", ".join(cards), hint="softprompt eval a,b,c --vote"
        )
    if records and not shape_of(records[0]).has_answers:
        raise _no_answers()
    classes = [card.labels for card in cards.values()]
    if any(labels != classes[0] for labels in classes):
        raise _other_classes(", ".join(cards), [list(labels) for labels in classes])


def _most_frequent(answers: Sequence[str]) -> str:
    """The most frequent answer; the first one in case of a tie."""
    counts = Counter(answers)
    return max(counts, key=counts.__getitem__)  # a Counter keeps the order of first appearance


def _no_answers() -> ConfigError:
    return ConfigError("plain text has no answers to vote on", hint="leave out --vote")


def _other_classes(where: str, classes: Sequence[list[str]]) -> ConfigError:
    return ConfigError(
        "these soft prompts have different classes, so they cannot vote together",
        where=where,
        got=" and ".join(dict.fromkeys(map(str, classes))),
    )
