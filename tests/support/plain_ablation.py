"""The plain way to hide virtual tokens from chosen layers, or from chosen heads of them: whole passes.

Shapes: B rows or bins, H heads, Q queries, K keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.runtime import PrefixRuntime


@contextlib.contextmanager
def hide_virtual_tokens(
    lm: FrozenLM, layers: Collection[int], slots: range, heads: Sequence[int] | None = None
) -> Iterator[None]:
    """In this block, what comes after the virtual tokens does not see them in these layers.

    Only for one prefix at a time, whose rows follow its keys and values.

    Args:
        slots: places of the virtual tokens in the prefix.
        heads: only from these query heads; from all if None.
    """
    runtime, hidden = PrefixRuntime.of(lm), frozenset(layers)
    switch = runtime.switch

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: object
    ) -> object:
        if getattr(module, "layer_idx", None) in hidden and mask is not None:
            first_query = 0 if key.shape[2] > query.shape[2] else slots.stop  # all in the pass over the prefix itself
            if heads is None:
                mask = mask.clone()
                mask[..., first_query:, slots.start : slots.stop] = torch.finfo(mask.dtype).min
            else:
                mask = mask.expand(-1, query.shape[1], -1, -1).clone()
                mask[:, list(heads), first_query:, slots.start : slots.stop] = torch.finfo(mask.dtype).min
        return switch.plain_function(module)(module, query, key, value, mask, **options)

    with runtime.use_attention(attend):
        yield
