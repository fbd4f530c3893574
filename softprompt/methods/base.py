"""What a method is: a parameterisation that is trained and then frozen into one of the two forms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from softprompt.prompt import Prompt, frozen


@dataclass(frozen=True)
class Start:
    """What a method starts from.

    Attributes:
        n_tokens: P, the number of virtual tokens.
        init: the name of an initialiser, see `inits.py`.
        text: token ids of a text (for "text"; also the lead of a KV prompt, BOS first).
        labels: token ids of each class label (for "labels").
        lead: ids that a KV prompt must begin with, such as BOS.
        frozen_tokens: first virtual tokens of a KV prompt that are not trained (the attention sink).
        hidden: width of a reparametrising MLP.
        seed: of every random draw.
    """

    n_tokens: int
    init: str = "text"
    text: tuple[int, ...] = ()
    labels: tuple[tuple[int, ...], ...] = ()
    lead: tuple[int, ...] = ()
    frozen_tokens: int = 0
    hidden: int = 512
    seed: int = 0


class Method(nn.Module, ABC):
    """A trainable soft prompt. Its parameters are all that is trained."""

    @abstractmethod
    def forward(self) -> Prompt:
        """The live prompt, with gradient into the parameters, in float32."""

    @final
    @torch.no_grad()
    def freeze(self) -> Prompt:
        """The finished prompt: plain tensors of one of the two forms, without gradient."""
        return frozen(self())
