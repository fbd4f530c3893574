"""Tiny models with a soft prompt, batches padded on any side, and the plain way that both are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from softprompt.data.template import Template
from softprompt.formatting.formatted_prompt import layout_for
from softprompt.modeling.prompts import FixedPrompt, ModelPrompt
from softprompt.modeling.soft_prompt_model import SoftPromptModel
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prompts.card import Card
from softprompt.prompts.store import save
from tests.laws.oracle import plain_logits
from tests.support.cases import random_prompt, text_ids
from tests.support.tiny import tiny_lm

SIDES = ("left", "right", "both", "middle")
LENGTHS = (7, 3, 12)
PAD = 0
FORMS = ("embedding", "kv")


def finished(lm: FrozenLM, form: str = "embedding", n_tokens: int = 5, template: Template | None = None) -> ModelPrompt:
    """A random soft prompt with its card."""
    prompt = random_prompt(lm, form, n_tokens, 3)
    template = template or Template("chat")
    layout = layout_for(lm, template, form)
    card = Card.draft("tone", prompt, lm.geometry, layout=layout, template=template.to_dict(), method={"name": "none"})
    return ModelPrompt(FixedPrompt(prompt), card)


def prompted(family: str = "llama", form: str = "embedding", *, bos: bool = False) -> SoftPromptModel:
    """A tiny model with a random soft prompt, in eval mode."""
    lm = tiny_lm(family, bos=bos)
    return SoftPromptModel(lm, finished(lm, form))


def saved(lm: FrozenLM, folder: Path, form: str = "embedding") -> Path:
    """A folder with a random soft prompt."""
    prompt = finished(lm, form)
    save(folder, prompt.method.freeze()[0], prompt.card)
    return folder


def texts(seed: int = 0, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """Rows of different lengths."""
    return [text_ids(n, seed + i) for i, n in enumerate(lengths)]


def padded(rows: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, L] of rows padded on this side; "middle" tears every row in two."""
    width = max(map(len, rows)) + 2
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        missing = width - len(row)
        first = {"left": missing, "right": 0, "both": missing // 2, "middle": 0}[side]
        columns = torch.arange(first, first + len(row))
        if side == "middle":
            columns[len(row) // 2 :] += missing
        ids[i, columns], mask[i, columns] = torch.tensor(row), 1
    return ids, mask


def wanted_logits(model: SoftPromptModel, row: Sequence[int]) -> Tensor:
    """Logits [T, V] of one row after concatenation with the virtual tokens."""
    return plain_logits(model.lm, Prefix(model.model.live(), model.model.lead), row)


def greedy(model: SoftPromptModel, row: Sequence[int], count: int) -> list[int]:
    """The likeliest continuation of one row, everything computed anew for each token."""
    ids = list(row)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(wanted_logits(model, ids)[-1].argmax()))
    return ids[len(row) :]
