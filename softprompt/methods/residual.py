"""Residual prompt tuning: a bottleneck network with a skip connection before the prompt.

Razdaibiedina, Mao, Hou, Khabsa, Lewis, Ba, Almahairi: Residual Prompt Tuning: Improving Prompt Tuning with Residual
Reparameterization. Findings of ACL 2023. https://arxiv.org/abs/2305.03937

Shapes: P virtual tokens, H embedding width, M bottleneck, N networks: one for all tokens, or one for each (N = P).
"""

from __future__ import annotations

from typing import final

import torch
from torch import nn
from torch.nn.functional import layer_norm

from softprompt.methods.base import Method, Start
from softprompt.methods.config import Hidden, MethodConfig
from softprompt.methods.initializers import initial_embeddings
from softprompt.methods.registry import MethodSpec, register_method
from softprompt.methods.rng import generator
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.forms import EmbeddingPrompt


class ResidualConfig(MethodConfig):
    """Settings of residual prompt tuning."""

    hidden: Hidden = 512


@final
class ResidualPromptTuning(Method):
    """P' = P + LayerNorm(ReLU(P D + d) U + u), with P [P, H], D [N, H, M], U [N, M, H] and biases learned.

    The scale of the LayerNorm starts at zero, so training starts exactly at the initializer's P. In the paper it starts
    at one, which adds noise of variance one: more than the embeddings themselves have. Folded away when frozen.
    """

    def __init__(self, lm: FrozenLM, start: Start, width: int, networks: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(initial_embeddings(lm, start))
        draw, hidden = generator(start.seed), self.embeddings.shape[1]

        def uniform(fan_in: int, *shape: int) -> nn.Parameter:  # as nn.Linear starts
            noise = (torch.rand(networks, *shape, generator=draw) * 2 - 1) * fan_in**-0.5
            return nn.Parameter(noise.to(lm.device))

        self.down, self.down_bias = uniform(hidden, hidden, width), uniform(hidden, 1, width)
        self.up, self.up_bias = uniform(width, width, hidden), uniform(width, 1, hidden)
        self.scale = nn.Parameter(torch.zeros(networks, 1, hidden, device=lm.device))
        self.shift = nn.Parameter(torch.zeros(networks, 1, hidden, device=lm.device))

    def forward(self) -> tuple[EmbeddingPrompt]:
        tokens = self.embeddings.view(len(self.down), -1, self.embeddings.shape[1])  # [1, P, H] or [P, 1, H]
        inner = torch.relu(tokens @ self.down + self.down_bias)
        change = layer_norm(inner @ self.up + self.up_bias, tokens.shape[-1:]) * self.scale + self.shift
        return (EmbeddingPrompt((tokens + change).view_as(self.embeddings)),)


register_method(
    MethodSpec(
        "residual",
        ResidualConfig,
        build=lambda lm, start, context: ResidualPromptTuning(lm, start, context.settings.hidden, networks=1),
        form="embedding",
        parameters="network",
    )
)
register_method(  # "separate" in the paper: P times the parameters
    MethodSpec(
        "residual-separate",
        ResidualConfig,
        build=lambda lm, start, context: ResidualPromptTuning(lm, start, context.settings.hidden, start.n_tokens),
        form="embedding",
        parameters="network",
    )
)
