"""Every private name of Transformers that `models` and `prefix` rely on; the engine's are in `engine.manager_base`.

The names are those of Transformers 5.10 to 5.x (see `pyproject.toml`). A test fails with the name if a release drops
one.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers import AttentionInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from softprompt.errors import FOREIGN_ERRORS, UnsupportedModelError

AttentionFunction = Callable[..., Any]  # (module, query, key, value, attention_mask, **options) -> (output, weights)


def has_state_layers(config: PreTrainedConfig) -> bool:
    """Whether Transformers' cache for this config holds recurrent or convolution states."""
    try:
        layers = DynamicCache(config=config).layers
    except FOREIGN_ERRORS:  # configs that no cache can be made for
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def with_parts(model: PreTrainedModel, parts: Mapping[str, nn.Module]) -> PreTrainedModel:
    """A shallow copy of the model with other direct parts. It shares everything else with the model."""
    made = copy.copy(model)
    vars(made)["_modules"] = {**model._modules, **parts}
    return made


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
