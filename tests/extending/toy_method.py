"""A method in one file, as docs/guides/extending.md shows it: a single direction is learned."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from softprompt.methods.base import Method, MethodContext, Start
from softprompt.methods.config import MethodConfig
from softprompt.methods.initializers import initial_embeddings
from softprompt.methods.registry import MethodSpec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.forms import EmbeddingPrompt


class ToyConfig(MethodConfig):
    """Settings of the toy method: those of every method, and one more."""

    scale: float = Field(default=1.0, gt=0, description="factor of what is learned")


class Toy(Method):
    """P' = P + scale · d: one direction d [H] is learned, and added to every virtual token P [P, H]."""

    start: torch.Tensor

    def __init__(self, lm: FrozenLM, start: Start, context: MethodContext[ToyConfig]) -> None:
        super().__init__()
        self.register_buffer("start", initial_embeddings(lm, start))
        self.direction = nn.Parameter(torch.zeros_like(self.start[0]))
        self.scale = context.settings.scale

    def forward(self) -> tuple[EmbeddingPrompt]:
        """The live soft prompt; training stores what it returns last."""
        return (EmbeddingPrompt(self.start + self.scale * self.direction),)


TOY = MethodSpec("toy", ToyConfig, build=Toy, form="embedding")
