"""Section "drift": how far the virtual tokens are from words and from their start, and how much they differ.

    distance       ‖p − p₀‖ / ‖p₀‖                       p₀ where training began
    norm quantile  share of the vocabulary's embeddings (of keys and values: of texts' values) that are shorter than p
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

from softprompt.editing.measures import effective_rank, relative_distances, token_vectors
from softprompt.errors import UnsupportedModelError
from softprompt.inspection.natural import natural_tokens
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt


@dataclass(frozen=True)
class Drift:
    """Where a soft prompt lies.

    Attributes:
        norms: of each virtual token; of keys and values the mean over layers, all heads of a token's values together.
        norm_quantiles: of each virtual token among the vocabulary's embeddings; of keys and values among the values of
            texts, mean over layers; None where these cannot be had.
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
    layers = token_vectors(prompt)
    begun = token_vectors(start) if start is not None and start.n_tokens == prompt.n_tokens else None
    cosines_PP = torch.stack([normalize(layer, dim=-1) @ normalize(layer, dim=-1).T for layer in layers]).mean(0)
    return Drift(
        norms=tuple(torch.stack([layer.norm(dim=-1) for layer in layers]).mean(0).tolist()),
        norm_quantiles=_norm_quantiles(lm, prompt, layers),
        distances=None if begun is None else tuple(relative_distances(layers, begun).tolist()),
        effective_rank=tuple(effective_rank(layer) for layer in layers),
        cosines=tuple(map(tuple, cosines_PP.tolist())),
    )


def _norm_quantiles(lm: FrozenLM, prompt: SoftPrompt, layers: Sequence[Tensor]) -> tuple[float, ...] | None:
    """Of each virtual token, mean over the layers."""
    if prompt.input_embeddings() is not None:
        tables = [lm.embed(torch.arange(lm.geometry.vocab)).detach().float().cpu()]
    else:
        try:
            natural = natural_tokens(lm)
        except UnsupportedModelError:
            return None
        tables = [values[natural.first :] for values in natural.prompt.similarity_vectors()]
    found: list[Tensor] = []
    for own, table in zip(layers, tables, strict=True):
        found.append(torch.searchsorted(table.norm(dim=-1).sort().values, own.norm(dim=-1)) / len(table))
    return tuple(torch.stack(found).mean(0).tolist())
