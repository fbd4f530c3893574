"""The model's own cache as the state that a prefix leaves: keys and values, recurrent and convolution states.

A causal model carries from a prefix to the text after it exactly what its cache holds. Here caches are values: they are
filled with gradient, copied for rows, and never changed in place while a gradient is needed.

Shapes: B rows, K key/value heads, S tokens, D head size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from softprompt.models.backbone import Backbone
from softprompt.models.transformers_compat import layer_states
from softprompt.prompts.base import LayerState

TensorChange = Callable[[Tensor], Tensor]


def new_cache(backbone: Backbone) -> Cache:
    """An empty cache through which a gradient flows: states are replaced, not overwritten."""
    cache = backbone.new_cache()
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            _make_functional(layer)
    return cache


def fill_cache(cache: Cache, layers: Sequence[LayerState]) -> None:
    """Put what the layers carry from a soft prompt into an empty cache, in the order: keys and values, states."""
    for i, held in enumerate(layers):
        if "keys" in held:
            cache.update(held["keys"][None], held["values"][None], i)
        for name, state in held.items():
            kind, _, number = name.partition(".")
            if kind in _UPDATES:
                _UPDATES[kind](cache.layers[i], state[None], int(number))


def layer_state(layer: object) -> dict[str, Tensor]:
    """Everything [B, …] that a layer of a model's cache holds, by name; see `prompts.base.LayerState`."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if not isinstance(keys, Tensor) or not isinstance(values, Tensor) or not keys.numel():
        return layer_states(layer)
    return {"keys": keys, "values": values} | layer_states(layer)


def mapped(cache: Cache, change: TensorChange) -> Cache:
    """A copy of the cache whose every tensor is `change` of the original."""
    made = copy.copy(cache)
    for name, value in vars(cache).items():
        if name != "layers":
            vars(made)[name] = _mapped(value, change)
    made.layers = [_mapped_layer(layer, change) for layer in cache.layers]
    return made


def for_rows(cache: Cache, rows: int) -> Cache:
    """The cache of one row, for several rows that go on from it. Shares memory with it."""
    return mapped(cache, lambda tensor: tensor.expand(rows, *tensor.shape[1:]))


def own_copy(cache: Cache, rows: int) -> Cache:
    """As `for_rows`, in memory of its own: a single token overwrites states in place."""
    return mapped(for_rows(cache, rows), Tensor.clone)


def for_decoding(cache: Cache) -> Cache:
    """A copy for steps of one token without gradient, which overwrite recurrent and convolution states."""
    made = mapped(cache, lambda tensor: tensor.detach().clone())
    for layer in made.layers:
        for name in _FUNCTIONAL:
            vars(layer).pop(name, None)
    return made


def joined_caches(caches: Sequence[Cache]) -> Cache:
    """One cache for the rows of all; where there are fewer keys, padding stands before them.

    Raises ValueError or RuntimeError for caches whose contents cannot stand side by side.
    """
    if len(caches) == 1:
        return caches[0]
    made = copy.copy(caches[0])
    made.layers = [copy.copy(layer) for layer in made.layers]
    for i, layer in enumerate(made.layers):
        held = [vars(cache.layers[i]) for cache in caches]
        vars(layer).update({name: _side_by_side(name, [part[name] for part in held]) for name in held[0]})
    return made


def _side_by_side(name: str, parts: Sequence[Any]) -> Any:
    """The values of one attribute, for the rows of all caches."""
    first = parts[0]
    if isinstance(first, Tensor) and first.ndim > 1:
        longest = max(part.shape[-2] for part in parts)
        if name in _KEYS_VALUES:
            parts = [pad(part, (0, 0, longest - part.shape[-2], 0)) for part in parts]
        return torch.cat(list(parts))
    if isinstance(first, dict):
        return {key: _side_by_side(name, [part[key] for part in parts]) for key in first}
    if isinstance(first, int) and not isinstance(first, bool):  # tokens seen
        return max(parts)
    return first


def _make_functional(layer: LinearAttentionCacheLayerMixin) -> None:
    """Let this layer's updates replace its states, where Transformers copies into a buffer."""
    for name, update in _FUNCTIONAL.items():
        vars(layer)[name] = partial(update, layer)


def _join_conv_state(
    layer: Any,
    conv_states: Tensor,
    state_idx: int = 0,
    conv_kernel_size: int | None = None,
    **options: Any,
) -> Tensor:
    """Transformers' `update_conv_state`: returns the states before these tokens and of them, keeps the last ones."""
    size = layer.conv_kernel_size[state_idx] or conv_kernel_size or conv_states.shape[-1]
    layer.conv_kernel_size[state_idx] = size
    layer.is_conv_states_initialized[state_idx] = True
    layer.dtype, layer.device = conv_states.dtype, conv_states.device
    if layer.has_previous_state[state_idx]:
        conv_states = torch.cat([layer.conv_states[state_idx], conv_states], dim=-1)
    else:
        layer.has_previous_state[state_idx] = True
        conv_states = pad(conv_states, (max(0, size - conv_states.shape[-1]), 0))
    layer.conv_states[state_idx] = conv_states[..., -size:]
    return conv_states


def _replace_state(
    layer: LinearAttentionCacheLayerMixin, recurrent_states: Tensor, state_idx: int = 0, **options: Any
) -> Tensor:
    """Transformers' `update_recurrent_state`."""
    layer.recurrent_states[state_idx] = recurrent_states
    layer.is_recurrent_states_initialized[state_idx] = True
    return recurrent_states


_KEYS_VALUES = ("keys", "values")
_UPDATES: dict[str, Callable[[Any, Tensor, int], Tensor]] = {"conv": _join_conv_state, "recurrent": _replace_state}
_FUNCTIONAL: dict[str, Callable[..., Tensor]] = {
    "update_conv_state": _join_conv_state,
    "update_recurrent_state": _replace_state,
}


def _mapped_layer(layer: Any, change: TensorChange) -> Any:
    made = copy.copy(layer)
    for name, value in vars(layer).items():
        vars(made)[name] = _mapped(value, change)
    if _FUNCTIONAL.keys() & vars(made).keys():
        _make_functional(made)
    return made


def _mapped(value: Any, change: TensorChange) -> Any:
    """`change` of every tensor with a row axis in a tensor, list or dict."""
    if isinstance(value, Tensor):
        return change(value) if value.ndim > 1 else value
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [_mapped(part, change) for part in value]
    return value
