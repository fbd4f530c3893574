"""Base class of all methods: a parameterization that is trained and then frozen into a soft prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

import torch
from torch import nn

from softprompt.data.tokenize import Example
from softprompt.methods.config import MethodConfig
from softprompt.prompts.base import SoftPrompt

_Settings_co = TypeVar("_Settings_co", bound=MethodConfig, covariant=True)


@dataclass(frozen=True)
class Start:
    """Initialization of the virtual tokens.

    Attributes:
        n_tokens: P, the number of virtual tokens, of a KV prompt with its lead.
        init: the name of an initializer, see `initializers.py`.
        text: token ids of a text (for "text"), or of demonstrations, which are neither cut nor repeated.
        labels: token ids of each class label (for "labels").
        prompt: another soft prompt (for "prompt").
        lead: ids that a KV prompt must begin with, such as BOS.
        seed: of every random draw.
    """

    n_tokens: int
    init: str = "text"
    text: tuple[int, ...] = ()
    labels: tuple[tuple[int, ...], ...] = ()
    prompt: SoftPrompt | None = None
    lead: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class MethodContext(Generic[_Settings_co]):
    """What a run gives a method besides its start.

    Attributes:
        settings: the method's own section of the settings.
        prompts: the saved soft prompts that the settings name, by name.
        n_tasks: how many tasks are trained together.
    """

    settings: _Settings_co
    prompts: Mapping[str, SoftPrompt] = field(default_factory=dict)
    n_tasks: int = 1


class Method(nn.Module, ABC):
    """A trainable soft prompt, or one for each of several tasks. Its parameters are all that is trained."""

    @abstractmethod
    def forward(self) -> tuple[SoftPrompt, ...]:
        """The live prompts, with gradient into the parameters, in float32: one for all tasks, or one for each.

        Prompts after those of the tasks (a shared prompt) get no rows.
        """

    def assign(self, rows: Sequence[Example]) -> tuple[Sequence[SoftPrompt], Sequence[int]]:
        """The live prompts, and for each row the number of its prompt: by task, unless a method routes rows."""
        prompts = self()
        return prompts, [row.task if len(prompts) > 1 else 0 for row in rows]

    @final
    @torch.no_grad()
    def freeze(self) -> tuple[SoftPrompt, ...]:
        """The finished prompts: plain tensors of one of the two forms, without gradient."""
        return tuple(prompt.freeze() for prompt in self())
