"""Section "nearest tokens": words near the virtual tokens, and how much of the effect these words have.

Virtual tokens seldom lie near words, and words near them say little: a prompt that performs as well can be nearest to
any text (Khashabi et al. 2022, "Prompt waywardness", https://arxiv.org/abs/2112.08348). So each list is printed with

    z          how many standard deviations the cosine lies above that of random vectors of the vocabulary's spread
    recovered  R of the prompt whose virtual tokens are replaced by their nearest words (the discretization test)

Cosines are taken after the mean embedding is removed, which all embeddings share (Mu, Viswanath 2018,
https://arxiv.org/abs/1702.01417).

Keys and values have no place among embeddings. Their words are tokens of real texts in context: the nearest by the
cosine of values, after the mean of these texts is removed, on average over layers. In their place stand those tokens'
own keys and values, moved to the virtual tokens' positions.

Shapes: P virtual tokens, V vocabulary, S tokens of texts, H embedding width or that of a token's values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from softprompt.data.tokenizer import decode
from softprompt.editing.compose import select
from softprompt.inspection.controls import random_like
from softprompt.inspection.effect import PromptEffect
from softprompt.inspection.natural import natural_tokens
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt

_TOP = 5
_RANDOM = 64  # vectors that z is counted against


@dataclass(frozen=True)
class NearTokens:
    """The words near one virtual token, nearest first.

    Attributes:
        ids, tokens: of the vocabulary.
        cosines: after the mean is removed.
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
def nearest(effect: PromptEffect, start: SoftPrompt | None = None) -> Nearest:
    """The words near each virtual token.

    Args:
        start: the prompt that training began from.

    Raises UnsupportedModelError for keys and values of an encoder–decoder, or of a model whose keys cannot be moved.
    """
    prompt = effect.prompt
    trials = [prompt, random_like(prompt), *([start] if start is not None else [])]
    found = [_by_embedding(effect, trial) or _by_values(effect, trial) for trial in trials]
    shares = effect.recovered([words for _, words in found])
    return Nearest(found[0][0], shares[0], shares[1], shares[2] if start is not None else None)


def _by_embedding(effect: PromptEffect, prompt: SoftPrompt) -> tuple[tuple[NearTokens, ...], SoftPrompt] | None:
    """The words near embeddings, and the prompt that they are; None for keys and values."""
    embeddings_PH, lm = prompt.input_embeddings(), effect.lm
    if embeddings_PH is None:
        return None
    table_VH, mean_H = _centered(effect)
    directions_PH = normalize(embeddings_PH.to(table_VH.device).float() - mean_H, dim=-1)
    near = _nearest_of(directions_PH @ table_VH.T, _chance([table_VH]), range(len(table_VH)), lm)
    return near, EmbeddingPrompt(lm.embed(torch.tensor([token.ids[0] for token in near])).detach())


def _by_values(effect: PromptEffect, prompt: SoftPrompt) -> tuple[tuple[NearTokens, ...], SoftPrompt]:
    """The tokens of texts near values, and the prompt of their keys and values."""
    lm, natural = effect.lm, natural_tokens(effect.lm)
    cosines, tables = list[Tensor](), list[Tensor]()
    for own_PH, text_SH in zip(prompt.similarity_vectors(), natural.prompt.similarity_vectors(), strict=True):
        real_SH = text_SH[natural.first :]
        mean_H = real_SH.mean(0)
        tables.append(normalize(real_SH - mean_H, dim=-1))
        cosines.append(normalize(own_PH.detach().float().cpu() - mean_H, dim=-1) @ tables[-1].T)
    mean_PS = torch.stack(cosines).mean(0)
    near = _nearest_of(mean_PS, _chance(tables), natural.ids[natural.first :], lm)
    chosen = (mean_PS.argmax(1) + natural.first).tolist()
    return near, select(natural.prompt.to(device=lm.device), chosen, lm)


def _nearest_of(
    cosines_PV: Tensor, chance: tuple[Tensor, Tensor], ids: Sequence[int], lm: FrozenLM
) -> tuple[NearTokens, ...]:
    """The nearest of each, by cosine. Columns are tokens with these ids, some of which may be the same."""
    rows: list[NearTokens] = []
    for cosines_V in cosines_PV:
        top = cosines_V.topk(min(4 * _TOP, len(cosines_V)))
        best: dict[int, float] = {}
        for place, cosine in zip(top.indices.tolist(), top.values.tolist(), strict=True):
            best.setdefault(ids[place], cosine)
        near = dict(list(best.items())[:_TOP])
        z = ((top.values[0] - chance[0]) / chance[1]).item()
        rows.append(NearTokens(tuple(near), tuple(decode([i], lm.tokenizer) for i in near), tuple(near.values()), z))
    return tuple(rows)


def _chance(tables: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the nearest cosine of random directions, on average over the tables [V, H]."""
    draw = torch.Generator().manual_seed(0)
    cosines: list[Tensor] = []
    for table_VH in tables:
        noise = normalize(torch.randn(_RANDOM, table_VH.shape[1], generator=draw).to(table_VH), dim=-1)
        cosines.append(noise @ table_VH.T)
    highest = torch.stack(cosines).mean(0).amax(1)
    return highest.mean(), highest.std()


def _centered(effect: PromptEffect) -> tuple[Tensor, Tensor]:
    """The table [V, H] of unit vectors around the mean embedding, and that mean [H], as the model sees embeddings."""
    lm = effect.lm
    table_VH = lm.embed(torch.arange(lm.geometry.vocab)).detach().float()
    mean_H = table_VH.mean(0)
    return normalize(table_VH - mean_H, dim=-1), mean_H
