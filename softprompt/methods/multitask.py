"""Multitask prompt tuning: one prompt for all tasks, and for each task a rank-one matrix that it is multiplied by.

Wang, Panda, Karlinsky, Feris, Sun, Kim: Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning. ICLR
2023. https://arxiv.org/abs/2303.02861

Shapes: T tasks, P virtual tokens, H embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import nn

from softprompt.methods.base import Method, Start
from softprompt.methods.config import MethodConfig
from softprompt.methods.initializers import initial_embeddings
from softprompt.methods.registry import MethodSpec, register_method
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.forms import EmbeddingPrompt

SHARED = "shared"  # end of the name that P* is saved under


def part_names(settings: MethodConfig, tasks: Sequence[str]) -> list[str]:
    """A prompt for each task, and the shared one."""
    return [*tasks, SHARED]


@final
class MultitaskPromptTuning(Method):
    """P_t = P* ∘ (u_t v_tᵀ), with P* [P, H] shared and u_t [P], v_t [H] of each task t learned.

    Every u and v starts at one, so every task starts exactly at the initializer's P* (PEFT draws both from
    N(0, 0.02²), which starts every task at nearly nothing). Gives the T prompts of the tasks and after them P*: a new
    task starts from it with `init: prompt` and T = 1, the paper's target adaptation. The paper's distillation from
    prompts that were trained one by one belongs to the loss, not to the method.
    """

    def __init__(self, lm: FrozenLM, start: Start, n_tasks: int) -> None:
        super().__init__()
        self.shared = nn.Parameter(initial_embeddings(lm, start))
        n_tokens, hidden = self.shared.shape
        self.tokens = nn.Parameter(torch.ones(n_tasks, n_tokens, device=lm.device))
        self.features = nn.Parameter(torch.ones(n_tasks, hidden, device=lm.device))

    def forward(self) -> tuple[EmbeddingPrompt, ...]:
        tasks_TPH = self.shared * self.tokens[:, :, None] * self.features[:, None, :]
        return tuple(EmbeddingPrompt(table) for table in (*tasks_TPH, self.shared))


register_method(
    MethodSpec(
        "multitask",
        MethodConfig,
        build=lambda lm, start, context: MultitaskPromptTuning(lm, start, context.n_tasks),
        form="embedding",
        parts=part_names,
        distills=False,
    )
)
