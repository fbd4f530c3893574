"""Every private name of Transformers that `models` and `prefix` rely on; the engine's are in `engine.manager_base`.

The names are those of Transformers 5.10 to 5.x (see `pyproject.toml`). A test fails with the name if a release drops
one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from softprompt.errors import UnsupportedModelError

AttentionFunction = Callable[..., Any]  # (module, query, key, value, attention_mask, **options) -> (output, weights)


def attention_name(model: PreTrainedModel) -> str:
    """The attention implementation that the model uses: "eager", "sdpa", …"""
    return str(model.config._attn_implementation)


def can_switch_attention(model: PreTrainedModel) -> bool:
    """Whether `set_attn_implementation` has an effect on this kind of model."""
    return type(model)._can_set_attn_implementation()


def attention_function(module: nn.Module, name: str) -> AttentionFunction:
    """The function that Transformers calls for this attention module under an implementation's name.

    Raises UnsupportedModelError for "eager" if the model's file defines no such function.
    """
    function = AttentionInterface().get(name) or getattr(
        sys.modules[type(module).__module__], "eager_attention_forward", None
    )
    if function is None:
        raise UnsupportedModelError(f"the {name} attention of {type(module).__name__} is not a function of its module")
    return function
