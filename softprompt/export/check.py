"""Comparison of an engine with softprompt itself: greedy answers and log-probabilities on the same rows.

Both sides get the same token ids. At each step up to the first token on which they disagree, the log-probabilities of
our five likeliest tokens are compared with those that the engine lists for them.

Shapes: R rows, V vocabulary, N listed tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from softprompt.data.records import Message
from softprompt.data.tokenizer import bos_ids
from softprompt.errors import ConfigError
from softprompt.export.base import EngineAnswer, EngineRow, ExportSource, ExportTarget
from softprompt.formatting.inputs import input_ids
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes

TEXTS = (
    "Where is my parcel?",
    "The weather in Paris is nice today.",
    "I was charged twice for the same order.",
    "What is the capital of Norway?",
    "This film was a complete waste of time.",
    "Please summarize the minutes of the meeting.",
    "The new phone has a brilliant screen but a weak battery.",
    "How do I reset my password?",
    "Shares fell by four percent after the announcement.",
    "Write a haiku about autumn.",
    "My flight was canceled and nobody helped.",
    "The team won the final after extra time.",
    "Is it safe to eat raw eggs?",
    "The recipe needs two cups of flour.",
    "Can I change the delivery address?",
    "Scientists found water on the moon.",
    "The hotel room smelled of paint.",
    "Translate this sentence into French.",
    "Why is the sky blue?",
    "Thank you, everything arrived in time.",
)
N_TOKENS = 16  # of each answer
N_LISTED = 5  # likeliest tokens of a step that are compared


@dataclass(frozen=True)
class CheckReport:
    """The result of a comparison.

    Attributes:
        rows: number of inputs.
        same: how many of the greedy answers are equal.
        difference: largest difference of the log-probabilities of the likeliest tokens, after the soft prompt.
        plain_difference: the same without the soft prompt: the engine's own arithmetic.
    """

    rows: int
    same: int
    difference: float
    plain_difference: float


def check_export(target: ExportTarget, folder: Path, source: ExportSource, texts: Sequence[str] = TEXTS) -> CheckReport:
    """Run the target's engine on an exported soft prompt, and compare it with ours.

    Args:
        folder: what `target.write` made.
        texts: inputs; every field of the template is filled with one.

    Raises:
        ConfigError: the target has no check.
        MissingExtraError: the engine is not installed.
    """
    if target.answers is None:
        known = "lora, gguf-lora, llama-slot, mlx, transformers"
        raise ConfigError("this target has no check", where=f"--to {target.name}", expected=known)
    rows = check_rows(source, texts)
    theirs = target.answers(folder, source, rows)
    ours = our_answers(source, rows)
    pairs = list(zip(theirs, ours, strict=True))
    behind = pairs[: len(texts)]
    return CheckReport(
        rows=len(texts),
        same=sum(_agrees(*pair) for pair in behind),
        difference=max(_difference(*pair) for pair in behind),
        plain_difference=max(_difference(*pair) for pair in pairs[len(texts) :]),
    )


def row_ids(source: ExportSource, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of each text, written as the soft prompt's template says, after the prefix."""
    template, tokenizer = source.formatted.template, source.lm.tokenizer
    rows: list[tuple[int, ...]] = []
    for text in texts:
        several = len(template.names) > 1
        given = json.dumps(dict.fromkeys(template.names, text)) if several else text
        turns = [Message("user", text)]
        rows.append(tuple(input_ids(given if template.names else turns, source.formatted, tokenizer)))
    return rows


def check_rows(source: ExportSource, texts: Sequence[str]) -> list[EngineRow]:
    """Each text after the soft prompt, then each without it, after BOS and what follows the virtual tokens."""
    rows = row_ids(source, texts)
    plain = (*bos_ids(source.lm.tokenizer), *source.lm.encode(source.card.layout.follow))
    behind = [EngineRow(ids, True, N_TOKENS) for ids in rows]
    return behind + [EngineRow((*plain, *ids), False, N_TOKENS) for ids in rows]


def our_answers(source: ExportSource, rows: Sequence[EngineRow]) -> list[EngineAnswer]:
    """Our greedy answers, of full length: an end token does not end them."""
    lm = source.lm
    steps: list[list[dict[int, float]]] = [[] for _ in rows]

    def keep(active: Sequence[int], logits_RV: Tensor) -> None:
        values_RN, ids_RN = logits_RV.log_softmax(-1).topk(N_LISTED)
        for number, ids, values in zip(active, ids_RN.tolist(), values_RN.tolist(), strict=True):
            steps[number].append(dict(zip(ids, values, strict=True)))

    with torch.no_grad():
        answers = decode_batch(
            lm,
            prepare_prefixes(lm, [source.formatted.prefix(lm), Prefix(None)]),
            [row.ids for row in rows],
            [0 if row.with_prompt else 1 for row in rows],
            Sampling(max_new_tokens=max(row.max_tokens for row in rows)),
            end_ids=[()] * len(rows),
            on_logits=keep,
        )
    # Of logits that are equal, as bfloat16 has them, the first of the list need not be the token that was taken.
    return [EngineAnswer(tuple(answer.ids), tuple(listed)) for answer, listed in zip(answers, steps, strict=True)]


def _agrees(theirs: EngineAnswer, ours: EngineAnswer) -> bool:
    """Whether the greedy answers are equal as far as the engine's goes, which may have ended at an end token."""
    return bool(theirs.ids) and theirs.ids == ours.ids[: len(theirs.ids)]


def _difference(theirs: EngineAnswer, ours: EngineAnswer) -> float:
    """Largest difference of the log-probabilities of our likeliest tokens that the engine lists, up to the first step
    at which the answers part. Infinite if it lists none of them."""
    largest = 0.0
    for place, (got, wanted) in enumerate(zip(theirs.logprobs, ours.logprobs, strict=False)):
        both = got.keys() & wanted.keys()
        largest = max([largest, *(abs(got[token] - wanted[token]) for token in both)]) if both else math.inf
        if theirs.ids[place : place + 1] != ours.ids[place : place + 1]:
            break
    return largest if theirs.logprobs else math.inf
