"""Evaluates a soft prompt, the base model or a text prompt on labeled rows.

Classification ranks all labels by log-likelihood, multiple choice the choices of each row (`label_ranking`); generation
decodes and compares with the references, several labels as sets; plain text gets loss and perplexity.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softprompt.data.records import Record
from softprompt.data.row_shapes.base import Scoring
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.spans import prompt_ids
from softprompt.data.targets import compared_part
from softprompt.data.tokenize import tokenize
from softprompt.data.turns import compared_references
from softprompt.data.vocabulary import check_vocabulary
from softprompt.deprecation import renamed_keywords
from softprompt.errors import ConfigError, DataError
from softprompt.evaluation import metrics
from softprompt.evaluation.custom_metrics import Metric, scores_of
from softprompt.evaluation.label_ranking import rank_choices, rank_labels
from softprompt.evaluation.metrics import Score
from softprompt.formatting.context import check_context, check_records, end_ids
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.inference.answer import Answer
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import learned_tokens, token_losses
from softprompt.prefix.packing import by_tokens
from softprompt.prefix.prepare import prepare_prefixes

_TOKENS = 8192  # tokens of plain text in one forward pass


@dataclass(frozen=True)
class Evaluation:
    """Scores of one formatted prompt, with its answers.

    Attributes:
        answers: predicted label, likeliest choice or generated text of each row; empty for loss.
        labels: the classes, for classification.
        log_likelihoods: of each row the log-likelihood of every class, or of each of its choices.
    """

    scores: dict[str, Score]
    rows: int
    answers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    log_likelihoods: tuple[tuple[float, ...], ...] = ()

    def to_dict(self) -> dict[str, object]:
        """{"rows": n, metric: value, …, "confidence_interval": {metric: [low, high]}}"""
        values = {name: score.value for name, score in self.scores.items()}
        intervals = {name: [score.low, score.high] for name, score in self.scores.items()}
        return {"rows": self.rows, **values, "confidence_interval": intervals}


@renamed_keywords(subject="formatted", own="extra_metrics")
def evaluate(
    lm: FrozenLM,
    formatted: FormattedPrompt,
    records: Sequence[Record],
    *,
    labels: Sequence[str] = (),
    sampling: Sampling | None = None,
    extra_metrics: Mapping[str, Metric] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Evaluation:
    """Score a prompt on rows of one kind: classification, multiple choice, generation, or loss of plain text.

    BLEU and ROUGE-L of generated answers need the extra `eval`; without it they are left out.

    Args:
        labels: all classes; those in the rows if empty. Classification only.
        sampling: for generation; greedy by default.
        extra_metrics: further metrics by name, of the answers (of a classification the likeliest labels).
        progress: called with the share that is done, at least; it never falls.

    Raises:
        DataError: no rows, rows without answers, labels that are not among the classes.
        ConfigError: further metrics for plain text, which has no answers; or one of them fails.
    """
    extra_metrics = extra_metrics or {}
    if not records:
        raise DataError("there are no rows to evaluate")
    scoring = scoring_of(records)
    if scoring in ("classification", "choices"):
        ranked = scoring == "classification"
        evaluation = (
            classification(lm, formatted, records, labels, progress)
            if ranked
            else choice(lm, formatted, records, progress)
        )
        extra_scores = scores_of(extra_metrics, evaluation.answers, [record.references for record in records])
        return replace(evaluation, scores=evaluation.scores | extra_scores)
    if scoring == "loss":
        if extra_metrics:
            raise ConfigError("plain text has no answers to score", where="--metric", got=", ".join(extra_metrics))
        return loss(lm, formatted, records, progress)
    for record in records:
        if not record.references:
            raise DataError("the row has no answer to compare with", where=record.where)
    records = compared_references(records, formatted.template, lm.tokenizer)
    part = compared_part(formatted.template, lm.tokenizer)
    found = answer_all(lm, formatted, records, sampling or Sampling(), progress)
    answers = [part(answer.text) for answer in found]
    references = [record.references for record in records]
    scores = answer_scores(answers, records) | scores_of(extra_metrics, answers, references)
    return Evaluation(scores, len(records), tuple(answers))


def scoring_of(records: Sequence[Record]) -> Scoring:
    """How rows are scored: by the choices of their own if they have some, otherwise as their shape says."""
    return "choices" if records[0].choices else shape_of(records[0]).scoring


def answer_scores(answers: Sequence[str], records: Sequence[Record]) -> dict[str, Score]:
    """The scores of one answer a row, however it came about."""
    scoring = scoring_of(records)
    if scoring in ("classification", "choices"):
        pairs = zip(answers, records, strict=True)
        return {"accuracy": metrics.proportion([answer.strip() == str(row.target).strip() for answer, row in pairs])}
    score = metrics.label_scores if scoring == "labels" else metrics.generation_scores
    return score(answers, [record.references for record in records])


def classification(
    lm: FrozenLM,
    formatted: FormattedPrompt,
    records: Sequence[Record],
    labels: Sequence[str],
    progress: Callable[[float], None] = lambda share: None,
) -> Evaluation:
    """Accuracy of the likeliest label (`accuracy`), and of the likeliest per token (`accuracy_norm`)."""
    classes = list(labels) or sorted({record.target for record in records if record.target is not None})
    for record in records:
        if record.target not in classes:
            raise DataError(f"label {record.target!r} is not among the classes", where=record.where, expected=classes)
    totals, lengths = rank_labels(lm, formatted, records, classes, progress)
    best, best_norm = totals.argmax(1), (totals / lengths).argmax(1)
    truth = torch.tensor([classes.index(str(record.target)) for record in records])
    scores = {
        "accuracy": metrics.proportion((best == truth).tolist()),
        "accuracy_norm": metrics.proportion((best_norm == truth).tolist()),
    }
    answers = tuple(classes[i] for i in best.tolist())
    return Evaluation(scores, len(records), answers, tuple(classes), tuple(map(tuple, totals.tolist())))


def choice(
    lm: FrozenLM,
    formatted: FormattedPrompt,
    records: Sequence[Record],
    progress: Callable[[float], None] = lambda share: None,
) -> Evaluation:
    """Accuracy of each row's likeliest choice (`accuracy`), and of the likeliest per token (`accuracy_norm`).

    Raises DataError for a row without a right choice.
    """
    for record in records:
        if record.target is None:
            raise DataError("the row does not say which choice is right", where=record.where)
    ranked = rank_choices(lm, formatted, records, progress)
    rows = list(zip(records, ranked, strict=True))
    answers = [record.choices[int(totals.argmax())] for record, (totals, _) in rows]
    best_norm = [record.choices[int((totals / lengths).argmax())] for record, (totals, lengths) in rows]
    scores = {
        name: metrics.proportion([answer == record.target for answer, record in zip(chosen, records, strict=True)])
        for name, chosen in (("accuracy", answers), ("accuracy_norm", best_norm))
    }
    likelihoods = tuple(tuple(totals.tolist()) for totals, _ in ranked)
    return Evaluation(scores, len(records), tuple(answers), log_likelihoods=likelihoods)


def answer_all(
    lm: FrozenLM,
    formatted: FormattedPrompt,
    records: Sequence[Record],
    sampling: Sampling,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Answer]:
    """Generated answers, in the order of the rows."""
    prefix = formatted.prefix(lm)
    with torch.no_grad():
        prefixes = prepare_prefixes(lm, [prefix])
    bodies = [prompt_ids(record, formatted.template, lm.tokenizer) for record in records]
    check_records(lm, records, bodies, prefixes.lengths[0] + lm.beside_text(sampling.max_new_tokens))
    ends, rows = end_ids(lm, formatted.template), len(bodies)
    tokens = [0] * rows * sampling.n

    def count(active: Sequence[int], logits: Tensor) -> None:
        for i in set(range(len(tokens))) - set(active):
            tokens[i] = sampling.max_new_tokens if tokens[i] else 0  # it has ended, or not begun
        for i in active:
            tokens[i] += 1
        progress(sum(tokens) / (len(tokens) * sampling.max_new_tokens))

    return decode_batch(
        lm,
        prefixes,
        bodies,
        [0] * rows,
        sampling,
        end_ids=[ends] * rows,
        stops=[formatted.stop] * rows,
        before=[(*prefix.lead, *prefix.follow)] * rows,
        on_logits=count,
    )


@torch.no_grad()
def loss(
    lm: FrozenLM,
    formatted: FormattedPrompt,
    records: Sequence[Record],
    progress: Callable[[float], None] = lambda share: None,
) -> Evaluation:
    """Mean -log p of the learned tokens (loss), and its exponential (perplexity)."""
    prefixes = prepare_prefixes(lm, [formatted.prefix(lm)])
    examples = tokenize(records, formatted.template, lm.tokenizer, max_length=sys.maxsize)
    check_vocabulary([(example.where, example.ids) for example in examples], lm.tokenizer, lm.geometry.vocab)
    rows = [(example.where, len(example.ids), prefixes.lengths[0]) for example in examples]
    check_context(lm, rows, "leave the row out, or give the text prompt fewer --shots")
    sums, done = [0.0] * len(examples), 0
    for part in by_tokens([len(example.ids) for example in examples], _TOKENS):
        batch = [examples[i] for i in part]
        losses = token_losses(lm, prefixes, batch)
        for i, row_losses in zip(part, losses.split([learned_tokens([row]) for row in batch]), strict=True):
            sums[i] = row_losses.sum().item()
        done += len(part)
        progress(done / len(examples))
    score = metrics.mean_loss(sums, [learned_tokens([example]) for example in examples])
    perplexity = Score(math.exp(score.value), math.exp(score.low), math.exp(score.high))
    return Evaluation({"loss": score, "perplexity": perplexity}, len(examples))
