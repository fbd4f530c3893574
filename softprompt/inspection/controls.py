"""Controls of a reading: a random prompt of equal norms, and the start that training began from.

A reading that says as much of a random prompt as of a trained one says nothing (Hewitt, Liang 2019,
https://arxiv.org/abs/1909.03368, on control tasks).

Shapes: P virtual tokens, H embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softprompt.prompts.base import SoftPrompt


def random_like(prompt: SoftPrompt, seed: int = 0) -> SoftPrompt:
    """A prompt of random directions whose vectors have the norms of this one's.

    Vectors are embeddings, or the keys or values of one head of one token.
    """
    draw = torch.Generator().manual_seed(seed)

    def same_norms(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=draw).to(tensor)
        norms = tensor.float().norm(dim=-1, keepdim=True)
        return (noise * (norms / noise.float().norm(dim=-1, keepdim=True).clamp_min(1e-12))).to(tensor.dtype)

    return prompt.map(same_norms)
