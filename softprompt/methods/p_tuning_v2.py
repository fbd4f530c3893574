"""P-tuning v2: keys and values of every layer, straight from one embedding table.

Liu, Ji, Fu, Tam, Du, Yang, Tang: P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales
and Tasks. ACL 2022. https://arxiv.org/abs/2110.07602

Shapes: P virtual tokens of which F are frozen, C = the sum of K·D over the keys and values of all layers.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from softprompt.methods.base import Method, Start
from softprompt.methods.config import FrozenTokens, MethodConfig, Sites
from softprompt.methods.initializers import initial_keys_values
from softprompt.methods.prefix_tuning import check_frozen, split_sites
from softprompt.methods.registry import MethodSpec, register_method
from softprompt.methods.rng import Noise
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt

DROPOUT = 0.1  # hidden_dropout_prob of BERT, which the authors' code puts on the prompt


class PTuningV2Config(MethodConfig):
    """Settings of P-tuning v2."""

    frozen_tokens: FrozenTokens = 0
    sites: Sites = None


@final
class PTuningV2(Method):
    """P' = dropout(T) in training and T afterwards, with T [P, C] learned.

    Without dropout this is `prefix-tuning`: the same numbers are trained, here as one table. So two things of the
    paper are its own: dropout on the prompt, and the start from N(0, 1), which is `init: normal` here (any other
    initializer works too, and better). Its optional MLP (`prefix_projection`) is `prefix-tuning-mlp`. Its
    classification head in place of the language model's is left out: nothing but the prompt is trained here.
    The first F tokens neither change nor drop out.
    """

    sink: Tensor

    def __init__(self, lm: FrozenLM, start: Start, settings: PTuningV2Config) -> None:
        super().__init__()
        frozen_tokens = check_frozen(settings.frozen_tokens, start.n_tokens)
        begin = initial_keys_values(lm, start, split_sites(settings.sites))
        sink, table = begin.matrix().split([frozen_tokens, start.n_tokens - frozen_tokens])
        self.register_buffer("sink", sink.clone())
        self.table = nn.Parameter(table.clone())
        self.like, self.noise = begin.to(device="meta"), Noise(start.seed)

    def forward(self) -> tuple[SoftPrompt]:
        table = self.table
        if self.training and torch.is_grad_enabled():
            kept = torch.rand(table.shape, generator=self.noise.next()).to(table.device) >= DROPOUT
            table = table * kept / (1 - DROPOUT)
        return (self.like.from_matrix(torch.cat([self.sink, table])),)


register_method(
    MethodSpec(
        "p-tuning-v2",
        PTuningV2Config,
        build=lambda lm, start, context: PTuningV2(lm, start, context.settings),
        form="kv",
    )
)
