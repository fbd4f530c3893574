"""What a method is: a parameterisation that is trained and then frozen into one of the two forms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from softprompt.data.tokenize import Example
from softprompt.prompts.base import SoftPrompt


@dataclass(frozen=True)
class Start:
    """What a method starts from.

    Attributes:
        n_tokens: P, the number of virtual tokens, of a KV prompt with its lead.
        init: the name of an initialiser, see `inits.py`.
        text: token ids of a text (for "text"), or of demonstrations, which are neither cut nor repeated.
        labels: token ids of each class label (for "labels").
        prompt: another soft prompt (for "prompt").
        lead: ids that a KV prompt must begin with, such as BOS.
        frozen_tokens: first virtual tokens of a KV prompt that are not trained (the attention sink).
        hidden: width of a reparametrising network.
        rank: of decomposed prompt tuning.
        sources: the prompts that a mixture attends to.
        n_tasks: how many tasks share a multitask prompt.
        n_prompts: how many prompts a router chooses from.
        sites: where a KV prompt stands in an encoder–decoder, of "encoder", "decoder", "cross"; everywhere if empty.
        seed: of every random draw.
    """

    n_tokens: int
    init: str = "text"
    text: tuple[int, ...] = ()
    labels: tuple[tuple[int, ...], ...] = ()
    prompt: SoftPrompt | None = None
    lead: tuple[int, ...] = ()
    frozen_tokens: int = 0
    hidden: int = 512
    sites: tuple[str, ...] = ()
    rank: int = 10
    sources: tuple[SoftPrompt, ...] = ()
    n_tasks: int = 1
    n_prompts: int = 4
    seed: int = 0


class Method(nn.Module, ABC):
    """A trainable soft prompt, or one for each of several tasks. Its parameters are all that is trained."""

    @abstractmethod
    def forward(self) -> tuple[SoftPrompt, ...]:
        """The live prompts, with gradient into the parameters, in float32: one for all tasks, or one for each.

        What comes behind those of the tasks (a shared prompt) stands in front of no row.
        """

    @final
    def assign(self, rows: Sequence[Example]) -> tuple[Sequence[SoftPrompt], Sequence[int]]:
        """The live prompts, and for each row the number of the prompt that it stands behind."""
        prompts = self()
        return prompts, [row.task if len(prompts) > 1 else 0 for row in rows]

    @final
    @torch.no_grad()
    def freeze(self) -> tuple[SoftPrompt, ...]:
        """The finished prompts: plain tensors of one of the two forms, without gradient."""
        return tuple(prompt.freeze() for prompt in self())
