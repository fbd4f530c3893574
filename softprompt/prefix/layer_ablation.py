"""Hides virtual tokens from chosen layers.

Shapes: B rows or bins, H heads, Q queries, K keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.runtime import PrefixRuntime


@contextlib.contextmanager
def hide_virtual_tokens(lm: FrozenLM, layers: Collection[int], slots: range) -> Iterator[None]:
    """In this block, what comes after the virtual tokens does not see them in these layers.

    Only for one prefix at a time, whose rows follow its keys and values.

    Args:
        slots: places of the virtual tokens in the prefix.
    """
    runtime, hidden = PrefixRuntime.of(lm), frozenset(layers)
    switch = runtime.switch

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: object
    ) -> object:
        if getattr(module, "layer_idx", None) in hidden and mask is not None:
            before = key.shape[2] - query.shape[2]  # 0 in the pass over the prefix itself
            mask = mask.clone()
            mask[..., 0 if before else slots.stop :, slots.start : slots.stop] = torch.finfo(mask.dtype).min
        return switch.plain_function(module)(module, query, key, value, mask, **options)

    with runtime.use_attention(attend):
        yield
