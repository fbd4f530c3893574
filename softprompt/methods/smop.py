"""SMoP: several short prompts, and a router that gives each input one of them.

Choi, Kim, Park, Mok, Lee: SMoP: Towards Efficient and Effective Prompt Tuning with Sparse Mixture-of-Prompts. EMNLP
2023. https://aclanthology.org/2023.emnlp-main.884

Shapes: B rows, K prompts, P virtual tokens of each, H embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from softprompt.data.tokenize import Example
from softprompt.errors import ConfigError
from softprompt.methods.base import Method, Start
from softprompt.methods.config import MethodConfig
from softprompt.methods.initializers import initial_embeddings
from softprompt.methods.registry import MethodSpec, register_method
from softprompt.methods.rng import Noise, generator
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt
from softprompt.prompts.router import Router, pooled, save_router


class SMoPConfig(MethodConfig):
    """Settings of SMoP."""

    n_prompts: int = Field(default=4, ge=2, description="soft prompts that the router chooses from")


def expert_names(settings: SMoPConfig, tasks: Sequence[str]) -> list[str]:
    """The K prompts by number, from 1."""
    return [str(k) for k in range(1, settings.n_prompts + 1)]


@final
class SMoP(Method):
    """l = W x, p = softmax(l ∘ (1 + ε)), k = argmax p, and the row follows P_k · (1 + (p_k - sg(p_k))).

    x [H] is the mean embedding of the row's tokens before the first learned one, W [K, H] the router, ε ~ N(0, 1) for
    each number while training and zero afterwards (the paper's router perturbation, section 2.3, which is also what
    balances the load: there is no further loss), sg stops the gradient. So a row sees P_k itself and the router
    still gets a gradient; in the paper a row sees P_k · p_k, with which P_k would be no ordinary prompt. The
    initializer gives every P_k its start, with seed + k where it draws. `freeze` gives the K prompts, `router` what
    chooses from them.
    """

    def __init__(self, lm: FrozenLM, start: Start, n_prompts: int) -> None:
        super().__init__()
        if n_prompts < 2:
            raise ConfigError("a router needs prompts to choose from", where="method.n_prompts", expected=">= 2")
        self.lm, self.noise = lm, Noise(start.seed)
        starts = [initial_embeddings(lm, replace(start, seed=start.seed + k)) for k in range(n_prompts)]
        self.prompts = nn.ParameterList(nn.Parameter(table) for table in starts)
        weights = torch.empty(n_prompts, lm.geometry.hidden)
        self.weights = nn.Parameter(nn.init.orthogonal_(weights, generator=generator(start.seed)).to(lm.device))

    def forward(self) -> tuple[EmbeddingPrompt, ...]:
        """The K live prompts."""
        return tuple(EmbeddingPrompt(table) for table in self.prompts)

    def assign(self, rows: Sequence[Example]) -> tuple[Sequence[SoftPrompt], Sequence[int]]:
        """The live prompts, a copy for each row while training; and for each row the number of its prompt."""
        logits_BK = torch.stack([pooled(self.lm, _input_ids(row)) for row in rows]) @ self.weights.T
        if not (self.training and torch.is_grad_enabled()):
            return self(), logits_BK.argmax(1).tolist()
        noise_BK = torch.randn(logits_BK.shape, generator=self.noise.next()).to(logits_BK.device)
        chances_B, chosen_B = torch.softmax(logits_BK + logits_BK.detach() * noise_BK, dim=1).max(1)
        scales_B: Tensor = 1 + (chances_B - chances_B.detach())  # exactly 1, bit for bit
        chosen = zip(chosen_B.tolist(), scales_B, strict=True)
        return [EmbeddingPrompt(self.prompts[k] * scale) for k, scale in chosen], range(len(rows))

    def router(self, names: Sequence[str]) -> Router:
        """The finished router; `names` are those that the K prompts are saved under."""
        return Router(self.weights.detach().clone(), tuple(names), self.lm.geometry)


def _input_ids(row: Example) -> tuple[int, ...]:
    """Token ids of a row before its first learned token, or all of a row whose answer is not known yet."""
    return row.ids[: row.mask.index(True)] if True in row.mask else row.ids


def _save(method: Method, folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Write the router of a trained mixture."""
    assert isinstance(method, SMoP)
    save_router(folder, method.router(names), overwrite=overwrite)


register_method(
    MethodSpec(
        "smop",
        SMoPConfig,
        build=lambda lm, start, context: SMoP(lm, start, context.settings.n_prompts),
        form="embedding",
        parts=expert_names,
        save=_save,
        one_task=True,
        distills=False,
    )
)
