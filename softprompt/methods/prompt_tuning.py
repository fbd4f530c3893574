"""Prompt tuning: the virtual tokens' embeddings are the parameters.

Lester, Al-Rfou, Constant: The Power of Scale for Parameter-Efficient Prompt Tuning. EMNLP 2021.
https://arxiv.org/abs/2104.08691
"""

from __future__ import annotations

from typing import final

from torch import nn

from softprompt.methods.base import Method, Start
from softprompt.methods.config import MethodConfig
from softprompt.methods.initializers import initial_embeddings
from softprompt.methods.registry import MethodSpec, register_method
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.forms import EmbeddingPrompt


@final
class PromptTuning(Method):
    """P·H parameters: `embeddings` [P, H]."""

    def __init__(self, lm: FrozenLM, start: Start) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(initial_embeddings(lm, start))

    def forward(self) -> tuple[EmbeddingPrompt]:
        return (EmbeddingPrompt(self.embeddings),)


register_method(
    MethodSpec(
        "prompt-tuning",
        MethodConfig,
        build=lambda lm, start, context: PromptTuning(lm, start),
        form="embedding",
        parameters="direct",
    )
)
