"""State tuning: the states that recurrent layers start from, and keys and values in attention layers, are trained.

It is prefix tuning's counterpart for Mamba-2, Qwen3.5, Granite 4 and other models with recurrent layers.

Galim, Kang, Zeng, Koo, Lee: Parameter-Efficient Fine-Tuning of State Space Models. ICML 2025.
https://arxiv.org/abs/2410.09016 (initial-state tuning, section 3 and appendix)
Xiao, Zhiyuan, Yueyu: State Tuning: State-based Test-Time Scaling on RWKV-7. 2025. https://arxiv.org/abs/2504.05097
"""

from __future__ import annotations

from typing import final

from torch import nn

from softprompt.methods.base import Method, Start
from softprompt.methods.config import MethodConfig
from softprompt.methods.initializers import initial_states
from softprompt.methods.registry import MethodSpec, register_method
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.forms import StatePrompt


class StateTuningConfig(MethodConfig):
    """Settings of state tuning."""


@final
class StateTuning(Method):
    """Every tensor that a layer carries from the start text to later tokens is a parameter, in the base's shapes."""

    def __init__(self, lm: FrozenLM, start: Start) -> None:
        super().__init__()
        begin = initial_states(lm, start)
        self.like = begin.to(device="meta")
        self.states = nn.ParameterDict(
            {_parameter(name): nn.Parameter(tensor.clone()) for name, tensor in begin.tensors().items()}
        )

    def forward(self) -> tuple[StatePrompt]:
        return (self.like.replace_tensors({name: self.states[_parameter(name)] for name in self.like.tensors()}),)


def _parameter(name: str) -> str:
    """A tensor's name as a parameter may have it."""
    return name.replace(".", "_")


register_method(
    MethodSpec(
        "state-tuning",
        StateTuningConfig,
        build=lambda lm, start, context: StateTuning(lm, start),
        form="state",
        parameters="direct",
    )
)
