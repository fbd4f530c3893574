"""Section "nearest tokens": words near the virtual tokens, and how much of the effect these words have.

Virtual tokens seldom lie near words, and words near them say little: a prompt that performs as well can be nearest to
any text (Khashabi et al. 2022, "Prompt waywardness", https://arxiv.org/abs/2112.08348). So each list is printed with

    z          how many standard deviations the cosine lies above that of random vectors of the vocabulary's spread
    recovered  R of the prompt whose virtual tokens are replaced by their nearest words (the discretization test)

Cosines are taken after the mean embedding is removed, which all embeddings share (Mu, Viswanath 2018,
https://arxiv.org/abs/1702.01417).

Shapes: P virtual tokens, V vocabulary, H embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from softprompt.data.tokenizer import decode
from softprompt.inspection.controls import random_like
from softprompt.inspection.effect import PromptEffect
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt

_TOP = 5
_RANDOM = 64  # vectors that z is counted against


@dataclass(frozen=True)
class NearTokens:
    """The words near one virtual token, nearest first.

    Attributes:
        ids, tokens: of the vocabulary.
        cosines: after the mean embedding is removed.
        z: of the nearest one.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    cosines: tuple[float, ...]
    z: float


@dataclass(frozen=True)
class Nearest:
    """Words near every virtual token.

    Attributes:
        tokens: one entry for each virtual token.
        recovered: share of the effect that the nearest words have in their place.
        random_recovered: the same of a random prompt's nearest words; what chance gives.
        start_recovered: of the nearest words of the prompt that training began from; None if that is not known.
    """

    tokens: tuple[NearTokens, ...]
    recovered: float
    random_recovered: float
    start_recovered: float | None = None


@torch.no_grad()
def nearest(effect: PromptEffect, start: SoftPrompt | None = None) -> Nearest | None:
    """The words near each virtual token; None for keys and values, which have no place in the table of embeddings.

    Args:
        start: the prompt that training began from.
    """
    prompt = effect.prompt
    if prompt.input_embeddings() is None:
        return None
    near = _near(effect, prompt)
    trials = [prompt, random_like(prompt), *([start] if start is not None else [])]
    words = [_as_words(effect, _near(effect, trial)) for trial in trials]
    shares = effect.recovered(words)
    return Nearest(near, shares[0], shares[1], shares[2] if start is not None else None)


def _near(effect: PromptEffect, prompt: SoftPrompt) -> tuple[NearTokens, ...]:
    embeddings_PH = prompt.input_embeddings()
    assert embeddings_PH is not None, "callers check"
    table_VH, mean_H = _centered(effect)
    directions_PH = normalize(embeddings_PH.to(table_VH.device).float() - mean_H, dim=-1)
    top = (directions_PH @ table_VH.T).topk(_TOP)
    draw = torch.Generator().manual_seed(0)
    noise = normalize(torch.randn(_RANDOM, table_VH.shape[1], generator=draw).to(table_VH.device), dim=-1)
    by_chance = (noise @ table_VH.T).amax(1)
    centre, spread = by_chance.mean(), by_chance.std()
    return tuple(
        NearTokens(
            tuple(ids),
            tuple(decode([i], effect.lm.tokenizer) for i in ids),
            tuple(cosines),
            ((cosines[0] - centre) / spread).item(),
        )
        for ids, cosines in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    )


def _centered(effect: PromptEffect) -> tuple[Tensor, Tensor]:
    """The table [V, H] of unit vectors around the mean embedding, and that mean [H], as the model sees embeddings."""
    lm = effect.lm
    table_VH = lm.embed(torch.arange(lm.geometry.vocab)).detach().float()
    mean_H = table_VH.mean(0)
    return normalize(table_VH - mean_H, dim=-1), mean_H


def _as_words(effect: PromptEffect, near: tuple[NearTokens, ...]) -> EmbeddingPrompt:
    return EmbeddingPrompt(effect.lm.embed(torch.tensor([token.ids[0] for token in near])).detach())
