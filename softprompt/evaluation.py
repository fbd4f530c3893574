"""Evaluation of subjects (a soft prompt, the base model, a text prompt) on the same rows.

Classification ranks all labels by log-likelihood: a row's text is run once, and behind it the labels as a tree in
which shared beginnings are run once. Generation decodes and compares; plain text gets loss and perplexity.

Shapes: R rows, M inner nodes of the label tree, E edges, H width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt import metrics
from softprompt.attach import bank, hidden
from softprompt.data.formats import Record
from softprompt.data.template import end_id
from softprompt.data.tokenise import prompt_ids, target_ids, tokenise
from softprompt.decode import Answer, Sampling, generate
from softprompt.errors import DataError
from softprompt.framing import Subject, end_ids
from softprompt.metrics import Score
from softprompt.model import FrozenLM
from softprompt.objective import learned_tokens, token_log_likelihoods
from softprompt.packing import Row

TOKENS = 8192  # text and label tokens run at once
ROWS = 32  # rows decoded at once
HEAD_POSITIONS = 256  # positions whose logits are held at once


@dataclass(frozen=True)
class Evaluation:
    """Scores of one subject, with what it answered.

    Attributes:
        answers: predicted label or generated text of each row; empty for loss.
    """

    scores: dict[str, Score]
    rows: int
    answers: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """{"rows": n, metric: value, …, "confidence_interval": {metric: [low, high]}}"""
        values = {name: score.value for name, score in self.scores.items()}
        intervals = {name: [score.low, score.high] for name, score in self.scores.items()}
        return {"rows": self.rows, **values, "confidence_interval": intervals}


def evaluate(
    lm: FrozenLM,
    subject: Subject,
    records: Sequence[Record],
    *,
    labels: Sequence[str] = (),
    sampling: Sampling | None = None,
) -> Evaluation:
    """Scores by the kind of the rows: classification, generation, or loss of plain text.

    Args:
        labels: all classes; those in the rows if empty. Classification only.
        sampling: for generation; greedy by default.

    Raises:
        DataError: no rows, rows without answers, labels that are not among the classes.
    """
    if not records:
        raise DataError("there are no rows to evaluate")
    if records[0].kind == "label":
        return classification(lm, subject, records, labels)
    if records[0].kind == "text":
        return loss(lm, subject, records)
    for record in records:
        if not record.references:
            raise DataError("the row has no answer to compare with", where=record.where)
    answers = [answer.text for answer in answer_all(lm, subject, records, sampling or Sampling())]
    references = [record.references for record in records]
    return Evaluation(metrics.generation_scores(answers, references), len(records), tuple(answers))


def classification(lm: FrozenLM, subject: Subject, records: Sequence[Record], labels: Sequence[str]) -> Evaluation:
    """Accuracy of the likeliest label, and of the likeliest per token (`accuracy_norm`, for unequal labels)."""
    classes = list(labels) or sorted({record.target for record in records if record.target is not None})
    for record in records:
        if record.target not in classes:
            raise DataError(f"label {record.target!r} is not among the classes", where=record.where, expected=classes)
    totals, lengths = rank(lm, subject, records, classes)
    truth = torch.tensor([classes.index(str(record.target)) for record in records])
    best, best_norm = totals.argmax(1), (totals / lengths).argmax(1)
    scores = {
        "accuracy": metrics.proportion((best == truth).tolist()),
        "accuracy_norm": metrics.proportion((best_norm == truth).tolist()),
    }
    return Evaluation(scores, len(records), tuple(classes[i] for i in best.tolist()))


@torch.no_grad()
def rank(lm: FrozenLM, subject: Subject, records: Sequence[Record], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Log-likelihood [R, labels] of every label behind every row, and tokens [labels] of each label."""
    tree = LabelTree.of(lm, subject, labels)
    bodies = [prompt_ids(record, subject.template, lm.tokenizer) for record in records]
    prefixes = bank(lm, [subject.prefix(lm)])
    totals = torch.zeros(len(records), len(labels))
    for part in _by_tokens([len(body) + len(tree.tokens) for body in bodies]):
        rows = [tree.behind(bodies[i]) for i in part]
        states = hidden(lm, prefixes, rows)
        ends = torch.tensor([len(row.ids) for row in rows]).cumsum(0)
        nodes = torch.arange(-1, len(tree.tokens)) - len(tree.tokens)  # the text's last token, then the inner nodes
        states_RMH = states[(ends[:, None] + nodes).to(lm.device)]
        totals[part] = tree.totals(lm, states_RMH).cpu()
    return totals, torch.tensor(tree.lengths, dtype=torch.float)


@dataclass(frozen=True)
class LabelTree:
    """All labels as one tree of tokens. Only inner nodes are run: a last token needs no successor.

    Attributes:
        tokens: the token of each inner node but the root (the text's last token).
        parents: its parent's number in `tokens`, -1 for the root.
        edges: (node, token) pairs whose log-likelihoods are needed; node 0 is the root.
        paths: for each label the numbers of its edges.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    paths: tuple[tuple[int, ...], ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each label."""
        return [len(path) for path in self.paths]

    @staticmethod
    def of(lm: FrozenLM, subject: Subject, labels: Sequence[str]) -> LabelTree:
        """The tree of these labels. If one label begins another, the end token is part of all of them."""
        texts = [target_ids(label, subject.template, lm.tokenizer) for label in labels]
        begins = {tuple(ids[:n]) for ids in texts for n in range(1, len(ids))}
        if any(tuple(ids) in begins for ids in texts):
            texts = [[*ids, end_id(subject.template, lm.tokenizer)] for ids in texts]
        nodes: dict[tuple[int, ...], int] = {(): 0}
        edges: dict[tuple[int, int], int] = {}
        paths = []
        for ids in texts:
            path = []
            for n, token in enumerate(ids):
                node = nodes.setdefault(tuple(ids[:n]), len(nodes))
                path.append(edges.setdefault((node, token), len(edges)))
            paths.append(tuple(path))
        inner = list(nodes)[1:]
        return LabelTree(
            tuple(ids[-1] for ids in inner),
            tuple(nodes[ids[:-1]] - 1 for ids in inner),
            tuple(edges),
            tuple(paths),
        )

    def behind(self, body: Sequence[int]) -> Row:
        """The row of a text with the tree grown on its last token."""
        stem = len(body)
        parents = [
            *range(-1, stem - 1),
            *(stem + parent if parent >= 0 else stem - 1 for parent in self.parents),
        ]
        return Row([*body, *self.tokens], parents=parents)

    def totals(self, lm: FrozenLM, states_RMH: Tensor) -> Tensor:
        """Log-likelihood [R, labels] from the hidden states of root and inner nodes."""
        nodes = states_RMH.shape[1]
        at = torch.tensor(self.edges, device=lm.device)
        parts = []
        for states in states_RMH.split(max(1, HEAD_POSITIONS // nodes)):
            logits = lm.logits(states.flatten(0, 1)).float().view(len(states), nodes, -1)
            parts.append(logits[:, at[:, 0], at[:, 1]] - logits.logsumexp(-1)[:, at[:, 0]])
        per_edge = torch.cat(parts)
        return torch.stack([per_edge[:, list(path)].sum(1) for path in self.paths], dim=1)


def answer_all(lm: FrozenLM, subject: Subject, records: Sequence[Record], sampling: Sampling) -> list[Answer]:
    """Generated answers, in the order of the rows; rows of like length are decoded together."""
    with torch.no_grad():
        prefixes = bank(lm, [subject.prefix(lm)])
    bodies = [prompt_ids(record, subject.template, lm.tokenizer) for record in records]
    order = sorted(range(len(bodies)), key=lambda i: len(bodies[i]))
    answers = [Answer()] * len(bodies)
    ends = end_ids(lm, subject.template)
    for start in range(0, len(order), ROWS):
        part = order[start : start + ROWS]
        done = generate(
            lm,
            prefixes,
            [bodies[i] for i in part],
            [0] * len(part),
            sampling,
            end_ids=[ends] * len(part),
            stops=[subject.stop] * len(part),
        )
        for i, answer in zip(part, done, strict=True):
            answers[i] = answer
    return answers


@torch.no_grad()
def loss(lm: FrozenLM, subject: Subject, records: Sequence[Record]) -> Evaluation:
    """Mean -log p of the learned tokens, and its exponential."""
    prefixes = bank(lm, [subject.prefix(lm)])
    room = lm.geometry.max_positions - prefixes.lengths[0]
    examples = tokenise(records, subject.template, lm.tokenizer, max_length=room)
    sums = [0.0] * len(examples)
    for part in _by_tokens([len(example.ids) for example in examples]):
        rows = [examples[i] for i in part]
        values = token_log_likelihoods(lm, prefixes, rows)
        for i, own in zip(part, values.split([learned_tokens([row]) for row in rows]), strict=True):
            sums[i] = -own.sum().item()
    score = metrics.mean_loss(sums, [learned_tokens([example]) for example in examples])
    perplexity = Score(math.exp(score.value), math.exp(score.low), math.exp(score.high))
    return Evaluation({"loss": score, "perplexity": perplexity}, len(examples))


def _by_tokens(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers, short rows first, in groups of at most `TOKENS` tokens (at least one row each)."""
    part: list[int] = []
    filled = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and filled + lengths[i] > TOKENS:
            yield part
            part, filled = [], 0
        part.append(i)
        filled += lengths[i]
    if part:
        yield part
