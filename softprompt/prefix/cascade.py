"""Attention of many rows to one prefix whose keys and values are there once, and to each row's own tokens.

All rows' queries meet the prefix in one matrix product, where a copy of it for every row would be read row by row
(Juravsky et al. 2024: Hydragen, https://arxiv.org/abs/2402.05099). Transformers' models call it in place of "sdpa",
whose result it has, while `cascade` says so.

Shapes: B rows, H heads, K key/value heads, L new tokens, C own tokens in the cache, S prefix slots, D head size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.forward import attention_implementation
from softprompt.prefix.kv import CausalPrefixKV

NAME = "softprompt_cascade"
NUMBERS = 2**26  # attention scores held at once: 256 MB in float32

_layers: ContextVar[Sequence[tuple[Tensor, Tensor]] | None] = ContextVar("softprompt_cascade_layers", default=None)


def shared_layers(lm: FrozenLM, prefix_kv: CausalPrefixKV) -> tuple[tuple[Tensor, Tensor], ...] | None:
    """Of each layer the keys [1, K, S, D] and values [1, K, S, D'] of a bank's one prefix; None if rows need copies:
    several prefixes, a layer that has no keys or takes another's, or an attention other than SDPA."""
    layers = tuple(kv for kv in prefix_kv.layers if kv is not None)
    whole = len(prefix_kv.lengths) == 1 and len(layers) == len(prefix_kv.layers)
    plain = lm.model.config._attn_implementation in ("sdpa", NAME) and lm.model._can_set_attn_implementation()
    return layers if whole and plain else None


@contextlib.contextmanager
def cascade(lm: FrozenLM, layers: Sequence[tuple[Tensor, Tensor]] | None) -> Iterator[None]:
    """While it lasts, this thread's rows see these keys and values in front of those in their cache. None: nothing."""
    if layers is None:
        yield
        return
    with attention_implementation(lm, NAME):
        token = _layers.set(layers)
        try:
            yield
        finally:
            _layers.reset(token)


def _attention(
    module: nn.Module,
    query_BHLD: Tensor,
    key_BKCD: Tensor,
    value_BKCD: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[B, L, H, D'], as Transformers' attention functions; `attention_mask` [B, 1, L, S + C] is added to the scores."""
    layers = _layers.get()
    if layers is None:  # another thread's call of the same model
        result = sdpa_attention_forward(
            module, query_BHLD, key_BKCD, value_BKCD, attention_mask, scaling=scaling, **kwargs
        )
        return cast("tuple[Tensor, None]", result)
    past = layers[cast("int", module.layer_idx)]
    query_BHLD = query_BHLD * (query_BHLD.shape[-1] ** -0.5 if scaling is None else scaling)
    _, heads, length, _ = query_BHLD.shape
    together = max(1, NUMBERS // (heads * length * attention_mask.shape[-1]))
    parts = zip(*(t.split(together) for t in (query_BHLD, key_BKCD, value_BKCD, attention_mask)), strict=True)
    return torch.cat([_attended(past, *part) for part in parts]).transpose(1, 2), None


def _attended(
    past: tuple[Tensor, Tensor], query_BHLD: Tensor, key_BKCD: Tensor, value_BKCD: Tensor, mask_B1LT: Tensor
) -> Tensor:
    """[B, H, L, D'], of scaled queries."""
    (keys_KSD, values_KSD), (rows, heads, length, _) = (kv[0] for kv in past), query_BHLD.shape
    groups, slots = len(keys_KSD), keys_KSD.shape[1]
    query_KBQD = query_BHLD.reshape(rows, groups, -1, query_BHLD.shape[-1]).transpose(0, 1)  # Q = H/K · L
    scores_KBQS = (query_KBQD.flatten(1, 2) @ keys_KSD.mT).unflatten(1, (rows, -1))
    scores_KBQC = query_KBQD @ key_BKCD.transpose(0, 1).mT
    scores_KBQT = torch.cat([scores_KBQS, scores_KBQC], dim=-1)
    scores_KBQT.unflatten(2, (-1, length)).add_(mask_B1LT)
    weights_KBQT = scores_KBQT.softmax(-1, dtype=torch.float32).to(query_BHLD.dtype)
    mixed_KBQD = (weights_KBQT[..., :slots].flatten(1, 2) @ values_KSD).unflatten(1, (rows, -1))
    mixed_KBQD = mixed_KBQD + weights_KBQT[..., slots:] @ value_BKCD.transpose(0, 1)
    return mixed_KBQD.transpose(0, 1).reshape(rows, heads, length, -1)


AttentionInterface.register(NAME, _attention)
