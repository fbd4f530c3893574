"""Every method by name. A method is built from a frozen model and a start, trained, and frozen into a prompt."""

from collections.abc import Callable

from softprompt.errors import ConfigError
from softprompt.methods.base import Method, Start
from softprompt.methods.prefix_tuning import PrefixTuning, ReparametrisedPrefixTuning
from softprompt.methods.prompt_tuning import PromptTuning
from softprompt.model import FrozenLM

# What these make is a KV prompt: its lead is part of it. A mixture is of the form of its sources.
KV_METHODS = frozenset({"p-tuning-v2", "prefix-tuning", "prefix-tuning-mlp"})
__all__ = ["KV_METHODS", "METHODS", "Method", "Start", "build"]

METHODS: dict[str, Callable[[FrozenLM, Start], Method]] = {
    "prefix-tuning": PrefixTuning,
    "prefix-tuning-mlp": ReparametrisedPrefixTuning,
    "prompt-tuning": PromptTuning,
}


def build(name: str, lm: FrozenLM, start: Start) -> Method:
    """The method by name, at its start. Raises ConfigError for an unknown name."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}", where="method.name", expected=f"one of {sorted(METHODS)}")
    return METHODS[name](lm, start)
