"""Prefix tuning: keys and values of virtual tokens in every layer are the parameters.

Li, Liang: Prefix-Tuning: Optimizing Continuous Prompts for Generation. ACL 2021. https://arxiv.org/abs/2101.00190
The direct parameters start from the keys and values of a real text, as in
Eyuboglu et al.: Cartridges. 2025. https://arxiv.org/abs/2506.06266, which also keeps the first token frozen.

Shapes: P virtual tokens of which F are frozen, K key/value heads, D head size.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from softprompt.errors import ConfigError
from softprompt.methods.base import Method, Start
from softprompt.methods.config import FrozenTokens, Hidden, MethodConfig, Sites
from softprompt.methods.initializers import initial_keys_values
from softprompt.methods.registry import MethodSpec, register_method
from softprompt.methods.rng import generator
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import KVPrompt


class PrefixTuningConfig(MethodConfig):
    """Settings of prefix tuning."""

    frozen_tokens: FrozenTokens = 0
    sites: Sites = None


class PrefixTuningMLPConfig(MethodConfig):
    """Settings of prefix tuning through an MLP."""

    frozen_tokens: FrozenTokens = 0
    hidden: Hidden = 512
    sites: Sites = None


@final
class PrefixTuning(Method):
    """Per layer `keys` and `values` [K, P - F, D] are trained, the first F tokens stay as they began.

    With F = 0 all are trained. A token is frozen because attention dumps on the first one what belongs nowhere
    ("sink"); moving it disturbs everything.
    """

    def __init__(self, lm: FrozenLM, start: Start, settings: PrefixTuningConfig) -> None:
        super().__init__()
        frozen_tokens = check_frozen(settings.frozen_tokens, start.n_tokens)
        self.keys, self.values = nn.ParameterDict(), nn.ParameterDict()
        self.sink = _Constants()
        self.layers = len(lm.geometry.layers)
        for i, kv in enumerate(initial_keys_values(lm, start, split_sites(settings.sites)).layers):
            if kv is not None:
                self.sink.add(f"k{i}", kv[0][:, :frozen_tokens])
                self.sink.add(f"v{i}", kv[1][:, :frozen_tokens])
                self.keys[str(i)] = nn.Parameter(kv[0][:, frozen_tokens:].clone())
                self.values[str(i)] = nn.Parameter(kv[1][:, frozen_tokens:].clone())

    def forward(self) -> tuple[KVPrompt]:
        def layer(i: int) -> tuple[Tensor, Tensor] | None:
            if str(i) not in self.keys:
                return None
            keys = torch.cat([self.sink.get(f"k{i}"), self.keys[str(i)]], dim=1)
            values = torch.cat([self.sink.get(f"v{i}"), self.values[str(i)]], dim=1)
            return keys, values

        return (KVPrompt(tuple(layer(i) for i in range(self.layers))),)


@final
class ReparameterizedPrefixTuning(Method):
    """P' = P_0 + MLP(E): an MLP over P learned vectors makes the change of all keys and values (paper, section 4.3).

    E [P, M], MLP: M -> tanh -> all layers' keys and values. The last matrix starts at zero, so training starts
    exactly at P_0, the keys and values of a real text. Folded away when frozen. The first F tokens do not change.
    """

    begin: Tensor

    def __init__(self, lm: FrozenLM, start: Start, settings: PrefixTuningMLPConfig) -> None:
        super().__init__()
        self.frozen_tokens = check_frozen(settings.frozen_tokens, start.n_tokens)
        begin = initial_keys_values(lm, start, split_sites(settings.sites))
        self.register_buffer("begin", begin.matrix())
        self.like = begin.to(device="meta")
        draw, width = generator(start.seed), settings.hidden
        self.tokens = nn.Parameter(torch.randn(start.n_tokens, width, generator=draw).to(lm.device))
        self.inner = nn.Parameter((torch.randn(width, width, generator=draw) * width**-0.5).to(lm.device))
        self.outer = nn.Parameter(torch.zeros(width, self.begin.shape[1], device=lm.device))

    def forward(self) -> tuple[SoftPrompt]:
        change = torch.tanh(self.tokens @ self.inner) @ self.outer
        moves = torch.arange(len(change), device=change.device) >= self.frozen_tokens
        return (self.like.from_matrix(self.begin + change * moves[:, None]),)


def check_frozen(frozen_tokens: int, n_tokens: int) -> int:
    """The number of virtual tokens that are not trained. Raises ConfigError unless some are trained."""
    if not 0 <= frozen_tokens < n_tokens:
        raise ConfigError(
            "frozen tokens must leave something to train",
            where="method.frozen_tokens",
            expected=f"0 to {n_tokens - 1}",
            got=frozen_tokens,
        )
    return frozen_tokens


def split_sites(sites: str | None) -> tuple[str, ...]:
    """The sites that a setting names; none means all."""
    return tuple(site.strip() for site in sites.split(",")) if sites else ()


class _Constants(nn.Module):
    """Tensors that travel with the state dict but are not trained."""

    def add(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor.clone())

    def get(self, name: str) -> Tensor:
        return self.get_buffer(name)


register_method(
    MethodSpec(
        "prefix-tuning",
        PrefixTuningConfig,
        build=lambda lm, start, context: PrefixTuning(lm, start, context.settings),
        form="kv",
        parameters="direct",
    )
)
register_method(
    MethodSpec(
        "prefix-tuning-mlp",
        PrefixTuningMLPConfig,
        build=lambda lm, start, context: ReparameterizedPrefixTuning(lm, start, context.settings),
        form="kv",
        parameters="network",
    )
)
