"""Attention over the prompts of other tasks, as in ATTEMPT but the same for every input.

Asai, Salehi, Peters, Hajishirzi: ATTEMPT: Parameter-Efficient Multi-task Tuning via Attentional Mixtures of Soft
Prompts. EMNLP 2022. https://arxiv.org/abs/2205.11961

Shapes: J source prompts, P virtual tokens, C numbers a token (see `table.py`), R = 100 reduced width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from softprompt.errors import ConfigError
from softprompt.methods.base import Method, MethodContext, Start
from softprompt.methods.config import FrozenTokens, MethodConfig, Names, Sites
from softprompt.methods.initializers import initial_embeddings, initial_keys_values
from softprompt.methods.prefix_tuning import check_frozen, split_sites
from softprompt.methods.registry import MethodSpec, register_method
from softprompt.methods.rng import seeded
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import check_fits

REDUCED = 100  # of the authors' code


class AttemptConfig(MethodConfig):
    """Settings of ATTEMPT."""

    sources: Names = Field(default=(), description="saved soft prompts that the new one attends to")
    frozen_tokens: FrozenTokens = 0
    sites: Sites = None

    def prompt_names(self) -> tuple[str, ...]:
        """With the sources."""
        return (*super().prompt_names(), *self.sources)


@final
class Attempt(Method):
    """P' = P_0 + Δ + Σ_j (a_j - a⁰_j) P_j, a = softmax_j(p_j · LayerNorm(U SiLU(D q)) / (e √C)).

    P_j are the source prompts, which do not change, and p_j [C] their largest value over the tokens, brought to mean
    square one. Δ [P, C] from zero, q [C], D [R, C], U [C, R] are learned. a⁰ is a at the start, so training starts
    exactly at P_0; with `init: prompt` that can be a source, or an average of them.

    In the paper q is the largest value over the embeddings of the input, so every input has its own mixture. Here q is
    learned: one mixture for the task, which folds into one ordinary prompt, but inputs of different kinds can no longer
    lean on different sources. The paper also attends to the target prompt P_0 + Δ, and has no a⁰; its temperature
    e·C suits the large embeddings of T5, while this one does not depend on their size. The sources may be of either
    form; a KV prompt's first `frozen_tokens` do not change.
    """

    begin: Tensor
    sources: Tensor
    even: Tensor

    def __init__(self, lm: FrozenLM, start: Start, context: MethodContext[AttemptConfig]) -> None:
        super().__init__()
        settings = context.settings
        sources = [context.prompts[name] for name in settings.sources]
        _check_sources(lm, sources, start.n_tokens)
        self.like = sources[0].to(device="meta")
        if not sources[0].begins_the_sequence:
            _check_no_sites(settings)
            self.frozen_tokens = 0
            begin = initial_embeddings(lm, start)
        else:
            self.frozen_tokens = check_frozen(settings.frozen_tokens, start.n_tokens)
            begin = initial_keys_values(lm, start, split_sites(settings.sites)).matrix()
        self.register_buffer("begin", begin)
        tables = [source.to(device=lm.device, dtype=torch.float32).matrix() for source in sources]
        self.register_buffer("sources", torch.stack(tables))
        width = self.begin.shape[1]
        with seeded(start.seed):
            self.query = nn.Parameter(torch.randn(width))
            self.down, self.up = nn.Linear(width, REDUCED, bias=False), nn.Linear(REDUCED, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.target = nn.Parameter(torch.zeros(start.n_tokens, width))
        self.to(lm.device)
        self.register_buffer("even", self.attention().detach())

    def attention(self) -> Tensor:
        """The weights a [J] of the sources."""
        keys_JC = self.sources.amax(dim=1)
        keys_JC = keys_JC / keys_JC.square().mean().sqrt()
        query_C = self.norm(self.up(nn.functional.silu(self.down(self.query))))
        return torch.softmax(keys_JC @ query_C / (math.e * math.sqrt(len(query_C))), dim=0)

    def forward(self) -> tuple[SoftPrompt]:
        change = self.target + torch.einsum("j,jpc->pc", self.attention() - self.even, self.sources)
        moves = torch.arange(len(change), device=change.device) >= self.frozen_tokens
        return (self.like.from_matrix(self.begin + change * moves[:, None]),)


def _check_sources(lm: FrozenLM, sources: Sequence[SoftPrompt], n_tokens: int) -> None:
    """Raise ConfigError or GeometryError unless there are two sources or more, and they fit each other."""
    if len(sources) < 2:
        hint = "name two saved soft prompts or more"
        raise ConfigError("attempt needs source prompts", where="method.sources", got=len(sources), hint=hint)
    shapes = {(source.form, source.n_tokens) for source in sources}
    if len(shapes) > 1 or sources[0].n_tokens != n_tokens:
        message = "the source prompts must be of one form and length"
        got = ", ".join(f"{form} of {n}" for form, n in sorted(shapes))
        raise ConfigError(message, where="method.sources", expected=f"{n_tokens} virtual tokens each", got=got)
    for source in sources:
        check_fits(source, lm.geometry)


def _check_no_sites(settings: AttemptConfig) -> None:
    if settings.sites:
        message = "sites are for KV prompts: an embedding prompt always precedes the text"
        raise ConfigError(message, where="method.sites", got=settings.sites, hint="leave method.sites out")


register_method(MethodSpec("attempt", AttemptConfig, build=Attempt, form=None, distills=False))
