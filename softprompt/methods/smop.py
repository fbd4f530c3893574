"""SMoP: several short prompts, and a router that gives each input one of them.

Choi, Kim, Park, Mok, Lee: SMoP: Towards Efficient and Effective Prompt Tuning with Sparse Mixture-of-Prompts. EMNLP
2023. https://aclanthology.org/2023.emnlp-main.884

Shapes: B rows, K prompts, P virtual tokens of each, H embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from softprompt.data.tokenize import Example
from softprompt.errors import ConfigError
from softprompt.methods.base import Start
from softprompt.methods.initializers import initial_embeddings
from softprompt.methods.rng import Noise, generator
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt
from softprompt.prompts.router import Router, pooled


@final
class SMoP(nn.Module):
    """l = W x, p = softmax(l ∘ (1 + ε)), k = argmax p, and the row stands behind P_k · (1 + (p_k - sg(p_k))).

    x [H] is the mean embedding of the row's tokens before the first learned one, W [K, H] the router, ε ~ N(0, 1) for
    each number while training and zero afterwards (the paper's router perturbation, section 2.3, which is also what
    balances the load: there is no further loss), sg stops the gradient. So a row sees P_k itself and the router
    still gets a gradient; in the paper a row sees P_k · p_k, with which P_k would be no ordinary prompt. The
    initialiser gives every P_k its start, with seed + k where it draws. `freeze` gives the K prompts, `router` what
    chooses from them.

    Not a `Method`: which prompt a row is behind depends on its text.
    """

    def __init__(self, lm: FrozenLM, start: Start) -> None:
        super().__init__()
        if start.n_prompts < 2:
            raise ConfigError("a router needs prompts to choose from", where="method.n_prompts", expected=">= 2")
        self.lm, self.noise = lm, Noise(start.seed)
        starts = [initial_embeddings(lm, replace(start, seed=start.seed + k)) for k in range(start.n_prompts)]
        self.prompts = nn.ParameterList(nn.Parameter(table) for table in starts)
        weights = torch.empty(start.n_prompts, lm.geometry.hidden)
        self.weights = nn.Parameter(nn.init.orthogonal_(weights, generator=generator(start.seed)).to(lm.device))

    def forward(self) -> tuple[EmbeddingPrompt, ...]:
        """The K live prompts."""
        return tuple(EmbeddingPrompt(table) for table in self.prompts)

    def assign(self, rows: Sequence[Example]) -> tuple[Sequence[SoftPrompt], Sequence[int]]:
        """The live prompts, a copy for each row while training; and for each row the number of its own."""
        logits_BK = torch.stack([pooled(self.lm, _given(row)) for row in rows]) @ self.weights.T
        if not (self.training and torch.is_grad_enabled()):
            return self(), logits_BK.argmax(1).tolist()
        noise_BK = torch.randn(logits_BK.shape, generator=self.noise.next()).to(logits_BK.device)
        chances_B, chosen_B = torch.softmax(logits_BK + logits_BK.detach() * noise_BK, dim=1).max(1)
        scales_B: Tensor = 1 + (chances_B - chances_B.detach())  # exactly 1, bit for bit
        chosen = zip(chosen_B.tolist(), scales_B, strict=True)
        return [EmbeddingPrompt(self.prompts[k] * scale) for k, scale in chosen], range(len(rows))

    @torch.no_grad()
    def freeze(self) -> tuple[SoftPrompt, ...]:
        """The K finished prompts."""
        return tuple(prompt.freeze() for prompt in self())

    def router(self, names: Sequence[str]) -> Router:
        """The finished router; `names` are those that the K prompts are saved under."""
        return Router(self.weights.detach().clone(), tuple(names), self.lm.geometry)


def _given(row: Example) -> tuple[int, ...]:
    """What is there of a row when its answer begins."""
    return row.ids[: row.mask.index(True)]
