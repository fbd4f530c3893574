"""P-tuning: a small network over learned vectors makes the embeddings of the virtual tokens.

Liu, Zheng, Du, Ding, Qian, Yang, Tang: GPT Understands, Too. 2021. https://arxiv.org/abs/2103.10385
The layers are those of PEFT's `PromptEncoder`; the authors' code has one layer less in its MLP, and an LSTM of width H.

Shapes: P virtual tokens, H embedding width, M width of the network.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from softprompt.methods.base import Method, Start
from softprompt.methods.config import Hidden, MethodConfig
from softprompt.methods.initializers import initial_embeddings
from softprompt.methods.registry import MethodSpec, register_method
from softprompt.methods.rng import seeded
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.forms import EmbeddingPrompt


class PTuningConfig(MethodConfig):
    """Settings of P-tuning."""

    hidden: Hidden = 512


@final
class PTuning(Method):
    """P' = P_0 + f(E) with E [P, H] learned, from N(0, 1), and f one of the two encoders below.

    The paper has no P_0: its prompt starts as what a random network gives. Here the network's last layer starts at
    zero, so training starts exactly at P_0. Folded away when frozen.
    """

    begin: Tensor

    def __init__(self, lm: FrozenLM, start: Start, encoder: type[_MLP] | type[_LSTM], width: int) -> None:
        super().__init__()
        self.register_buffer("begin", initial_embeddings(lm, start))
        with seeded(start.seed):
            self.tokens = nn.Parameter(torch.randn(self.begin.shape))
            self.encoder = encoder(self.begin.shape[1], width)
        nn.init.zeros_(self.encoder.last.weight)
        nn.init.zeros_(self.encoder.last.bias)
        self.to(lm.device)

    def forward(self) -> tuple[EmbeddingPrompt]:
        return (EmbeddingPrompt(self.begin + self.encoder(self.tokens)),)


@final
class _MLP(nn.Module):
    """H -> M -> ReLU -> M -> ReLU -> H, each token by itself."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(hidden, width), nn.Linear(width, width)
        self.last = nn.Linear(width, hidden)

    def forward(self, tokens_PH: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(tokens_PH)))))


@final
class _LSTM(nn.Module):
    """An LSTM of two layers in both directions over the tokens, then 2M -> 2M -> ReLU -> H."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(hidden, width, num_layers=2, bidirectional=True)
        self.first, self.last = nn.Linear(2 * width, 2 * width), nn.Linear(2 * width, hidden)

    def forward(self, tokens_PH: Tensor) -> Tensor:
        states, _ = self.lstm(tokens_PH)
        return self.last(torch.relu(self.first(states)))


register_method(
    MethodSpec(
        "p-tuning",
        PTuningConfig,
        build=lambda lm, start, context: PTuning(lm, start, _MLP, context.settings.hidden),
        form="embedding",
        parameters="network",
    )
)
register_method(
    MethodSpec(
        "p-tuning-lstm",
        PTuningConfig,
        build=lambda lm, start, context: PTuning(lm, start, _LSTM, context.settings.hidden),
        form="embedding",
        parameters="network",
    )
)
