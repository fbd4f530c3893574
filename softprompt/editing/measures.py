"""Measures of a soft prompt's vectors: effective rank, distance from another prompt.

Shapes: P virtual tokens, H width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.prompts.base import SoftPrompt


def effective_rank(vectors_PH: Tensor) -> float:
    """exp of the entropy of the squared singular values' shares: 1 for equal directions, P for orthogonal ones."""
    squares = torch.linalg.svdvals(vectors_PH.float()) ** 2
    shares = squares / squares.sum().clamp_min(1e-30)
    return torch.exp(-(shares * shares.clamp_min(1e-30).log()).sum()).item()


def token_vectors(prompt: SoftPrompt) -> list[Tensor]:
    """[P, H] of the embeddings, or of every layer's values, in float32 on the CPU."""
    embeddings = prompt.input_embeddings()
    parts = prompt.similarity_vectors() if embeddings is None else [embeddings]
    return [part.detach().float().cpu() for part in parts]


def relative_distances(vectors: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """[P]: ‖p − p₀‖ / ‖p₀‖ of each virtual token, mean over the layers."""
    pairs = zip(vectors, start, strict=True)
    return torch.stack([(now - then).norm(dim=-1) / then.norm(dim=-1).clamp_min(1e-12) for now, then in pairs]).mean(0)
