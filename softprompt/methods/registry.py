"""Every method by name. A method is built from a frozen model and a start, trained, and frozen into a prompt."""

from collections.abc import Callable

from softprompt.errors import ConfigError
from softprompt.methods.attempt import Attempt
from softprompt.methods.base import Method, Start
from softprompt.methods.decomposed import DecomposedPromptTuning
from softprompt.methods.multitask import MultitaskPromptTuning
from softprompt.methods.p_tuning import p_tuning, p_tuning_lstm
from softprompt.methods.p_tuning_v2 import PTuningV2
from softprompt.methods.prefix_tuning import PrefixTuning, ReparametrisedPrefixTuning
from softprompt.methods.prompt_tuning import PromptTuning
from softprompt.methods.residual import residual, residual_separate
from softprompt.methods.smop import SMoP
from softprompt.models.frozen_lm import FrozenLM

METHODS: dict[str, Callable[[FrozenLM, Start], Method | SMoP]] = {
    "decomposed": DecomposedPromptTuning,
    "mixture": Attempt,
    "multitask": MultitaskPromptTuning,
    "p-tuning": p_tuning,
    "p-tuning-lstm": p_tuning_lstm,
    "p-tuning-v2": PTuningV2,
    "prefix-tuning": PrefixTuning,
    "prefix-tuning-mlp": ReparametrisedPrefixTuning,
    "prompt-tuning": PromptTuning,
    "residual": residual,
    "residual-separate": residual_separate,
    "smop": SMoP,
}
# What these make is a KV prompt: its lead is part of it. A mixture is of the form of its sources.
KV_METHODS = frozenset({"p-tuning-v2", "prefix-tuning", "prefix-tuning-mlp"})


def build(name: str, lm: FrozenLM, start: Start) -> Method | SMoP:
    """The method by name, at its start. Raises ConfigError for an unknown name."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}", where="method.name", expected=f"one of {sorted(METHODS)}")
    return METHODS[name](lm, start)
