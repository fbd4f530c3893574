"""Section "drift": how far the virtual tokens are from words and from their start, and how much they differ.

    distance       ‖p − p₀‖ / ‖p₀‖                       p₀ where training began
    norm quantile  share of the vocabulary's embeddings that are shorter than p
    effective rank exp( H(σ² / Σ σ²) )                   of the matrix of virtual tokens, σ its singular values
                                                         (Roy, Vetterli 2007, "The effective rank")

Descriptive: it says where the prompt lies, not what it does. Of keys and values everything is measured in each layer,
against the keys and values of a text.

Shapes: P virtual tokens, V vocabulary, H embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt


@dataclass(frozen=True)
class Drift:
    """Where a soft prompt lies.

    Attributes:
        norms: of each virtual token; of keys and values the mean over layers, all heads of a token's values together.
        norm_quantiles: of each virtual token among the vocabulary's embeddings; None for keys and values.
        distances: of each from its start; None if that is not known, or has another length.
        effective_rank: of the embeddings, or of each layer's values.
        cosines: [P, P] between virtual tokens; of keys and values the mean over layers.
    """

    norms: tuple[float, ...]
    norm_quantiles: tuple[float, ...] | None
    distances: tuple[float, ...] | None
    effective_rank: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]


@torch.no_grad()
def drift(lm: FrozenLM, prompt: SoftPrompt, start: SoftPrompt | None = None) -> Drift:
    """Measure where a soft prompt lies.

    Args:
        start: the prompt that training began from.
    """
    layers = _vectors(prompt)
    embeddings = prompt.input_embeddings()
    quantiles = None
    if embeddings is not None:
        table_V = lm.embed(torch.arange(lm.geometry.vocab)).detach().float().norm(dim=-1).cpu().sort().values
        found = torch.searchsorted(table_V, layers[0].norm(dim=-1)) / len(table_V)
        quantiles = tuple(found.tolist())
    begun = _vectors(start) if start is not None and start.n_tokens == prompt.n_tokens else None
    cosines_PP = torch.stack([normalize(layer, dim=-1) @ normalize(layer, dim=-1).T for layer in layers]).mean(0)
    return Drift(
        norms=tuple(torch.stack([layer.norm(dim=-1) for layer in layers]).mean(0).tolist()),
        norm_quantiles=quantiles,
        distances=None if begun is None else _distances(layers, begun),
        effective_rank=tuple(effective_rank(layer) for layer in layers),
        cosines=tuple(map(tuple, cosines_PP.tolist())),
    )


def effective_rank(vectors_PH: Tensor) -> float:
    """exp of the entropy of the squared singular values' shares: 1 for equal directions, P for orthogonal ones."""
    squares = torch.linalg.svdvals(vectors_PH.float()) ** 2
    shares = squares / squares.sum().clamp_min(1e-30)
    return torch.exp(-(shares * shares.clamp_min(1e-30).log()).sum()).item()


def _vectors(prompt: SoftPrompt) -> list[Tensor]:
    """[P, width] of the embeddings, or of every layer's values."""
    embeddings = prompt.input_embeddings()
    parts = prompt.similarity_vectors() if embeddings is None else [embeddings]
    return [part.detach().float().cpu() for part in parts]


def _distances(layers: Sequence[Tensor], begun: Sequence[Tensor]) -> tuple[float, ...]:
    """Of each virtual token, mean over the layers."""
    pairs = zip(layers, begun, strict=True)
    relative = [(now - then).norm(dim=-1) / then.norm(dim=-1).clamp_min(1e-12) for now, then in pairs]
    return tuple(torch.stack(relative).mean(0).tolist())
