"""Decomposed prompt tuning: the prompt is a product of two thin matrices.

Xiao, Xu, Li, Wang, Hu: Decomposed Prompt Tuning via Low-Rank Reparameterization. Findings of EMNLP 2023.
https://arxiv.org/abs/2310.10094 (not DePT, arXiv 2309.05173, which also changes the embeddings of the text)

Shapes: P virtual tokens, H embedding width, R rank.
"""

from __future__ import annotations

from typing import final

import torch
from pydantic import Field
from torch import nn

from softprompt.errors import ConfigError
from softprompt.methods.base import Method, Start
from softprompt.methods.config import MethodConfig
from softprompt.methods.initializers import initial_embeddings
from softprompt.methods.registry import MethodSpec, register_method
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.forms import EmbeddingPrompt


class DecomposedConfig(MethodConfig):
    """Settings of decomposed prompt tuning."""

    rank: int = Field(default=10, ge=1, description="rank of the two matrices")


@final
class DecomposedPromptTuning(Method):
    """P' = A B, with A [P, R] and B [R, H] learned: R·(P + H) parameters. R is at most P and H, more would add nothing.

    The paper starts from two Gaussian matrices. Here A = U and B = S Vᵀ of the singular value decomposition of the
    initializer's P, cut after R: the nearest matrix of that rank, and P itself if P has no higher rank. A holds U
    whole, so that a direction which P lacks (S = 0) can still grow: a product of two zeros has no gradient.
    """

    def __init__(self, lm: FrozenLM, start: Start, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise ConfigError("the rank must be at least 1", where="method.rank", got=rank)
        svd = torch.linalg.svd(initial_embeddings(lm, start), full_matrices=False)
        self.left = nn.Parameter(svd.U[:, :rank].clone())
        self.right = nn.Parameter((svd.S[:, None] * svd.Vh)[:rank].clone())

    def forward(self) -> tuple[EmbeddingPrompt]:
        return (EmbeddingPrompt(self.left @ self.right),)


register_method(
    MethodSpec(
        "decomposed",
        DecomposedConfig,
        build=lambda lm, start, context: DecomposedPromptTuning(lm, start, context.settings.rank),
        form="embedding",
    )
)
