"""Rows with labels, and the labels' likelihoods the slow way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from softprompt.data.records import Record
from softprompt.data.spans import prompt_ids, target_ids
from softprompt.data.targets import end_id
from softprompt.data.template import Template
from softprompt.formatting.formatted_prompt import FormattedPrompt, layout_for, no_prompt
from softprompt.models.frozen_lm import FrozenLM
from tests.laws.oracle import plain_logits
from tests.support.cases import random_prompt
from tests.support.rows import records

TEMPLATE = Template("text", "Text: {text}\nLabel:")
TEXTS = ("short", "a good deal longer than that", "mid one", "x", "another of the kind")
LABELS = {
    "one token each": ["a", "b"],  # after a space, which all share
    "several tokens": ["good", "bad", "so-so"],
    "shared beginnings": ["positive", "posh", "negative", "neg-like"],
    "one begins another": ["pos", "positive", "neg"],
    "a chain": ["a", "ab", "abc", "abcd"],
    "only one": ["yes"],
}


def formatted(lm: FrozenLM, form: str = "kv", template: Template = TEMPLATE) -> FormattedPrompt:
    if form == "none":
        return no_prompt(lm, template)
    return FormattedPrompt(random_prompt(lm, form, 5, 1), template, layout_for(lm, template, form))


def labelled(labels: Sequence[str]) -> list[Record]:
    return records(*({"text": text, "label": labels[i % len(labels)]} for i, text in enumerate(TEXTS)))


@torch.no_grad()
def score(lm: FrozenLM, of: FormattedPrompt, body: Sequence[int], target: Sequence[int]) -> float:
    """log p(target | prefix, body), by concatenation."""
    logs = torch.log_softmax(plain_logits(lm, of.prefix(lm), [*body, *target]), -1)
    return sum(logs[len(body) - 1 + i, token].item() for i, token in enumerate(target))


def brute_force(
    lm: FrozenLM, of: FormattedPrompt, rows: Sequence[Record], labels: Sequence[str], end: bool
) -> torch.Tensor:
    """[R, labels], a forward pass for each pair."""
    closing = [end_id(of.template, lm.tokenizer)] if end else []
    targets = [[*target_ids(label, of.template, lm.tokenizer), *closing] for label in labels]
    bodies = [prompt_ids(row, of.template, lm.tokenizer) for row in rows]
    return torch.tensor([[score(lm, of, body, target) for target in targets] for body in bodies])
