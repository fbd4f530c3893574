"""Attention of many rows to one shared prefix, whose keys and values are stored once, and to each row's own tokens.

All rows' queries meet the prefix in one matrix product, where a copy of it for every row would be read row by row
(Juravsky et al. 2024: Hydragen, https://arxiv.org/abs/2402.05099). Inside `cascade`, Transformers' models call it in
place of "sdpa", and the result is the same.

Shapes: B rows, H heads, K key/value heads, L new tokens, C own tokens in the cache, S prefix slots, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import CausalPrefixKV
from softprompt.prefix.runtime import PrefixRuntime

CASCADE_SCORES = 2**26  # attention scores held at once: 256 MB in float32


def shared_layers(lm: FrozenLM, prefix_kv: CausalPrefixKV) -> tuple[tuple[Tensor, Tensor], ...] | None:
    """For each layer the keys [1, K, S, D] and values [1, K, S, D'] of the only prefix; None if rows need copies.

    They do with several prefixes, with a layer that has no keys or takes another's, with an attention other than SDPA,
    and in a model whose cache does not hold the attention's keys (`verify` tries it).
    """
    runtime = PrefixRuntime.of(lm)
    layers = tuple(kv for kv in prefix_kv.layers if kv is not None)
    whole = runtime.shares and len(prefix_kv.lengths) == 1 and len(layers) == len(prefix_kv.layers)
    return layers if whole and runtime.attention_name == "sdpa" and runtime.can_switch_attention else None


def cascade(lm: FrozenLM, layers: Sequence[tuple[Tensor, Tensor]] | None) -> AbstractContextManager[None]:
    """While it lasts, this thread's rows attend to these keys and values before those in their cache. None: nothing."""
    if layers is None:
        return nullcontext()
    return PrefixRuntime.of(lm).use_attention(partial(_attention, layers))


def _attention(
    layers: Sequence[tuple[Tensor, Tensor]],
    module: nn.Module,
    query_BHLD: Tensor,
    key_BKCD: Tensor,
    value_BKCD: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """[B, L, H, D'], as Transformers' attention functions; `attention_mask` [B, 1, L, S + C] is added to the scores."""
    past = layers[cast("int", module.layer_idx)]
    query_BHLD = query_BHLD * (query_BHLD.shape[-1] ** -0.5 if scaling is None else scaling)
    heads, length = query_BHLD.shape[1:3]
    together = max(1, CASCADE_SCORES // (heads * length * attention_mask.shape[-1]))
    parts = zip(*(t.split(together) for t in (query_BHLD, key_BKCD, value_BKCD, attention_mask)), strict=True)
    return torch.cat([_attend(past, *part) for part in parts]).transpose(1, 2).contiguous(), None


def _attend(
    past: tuple[Tensor, Tensor], query_BHLD: Tensor, key_BKCD: Tensor, value_BKCD: Tensor, mask_B1LT: Tensor
) -> Tensor:
    """[B, H, L, D'], of scaled queries."""
    keys_KSD, values_KSD = (kv[0].to(query_BHLD.device) for kv in past)
    rows = len(query_BHLD)
    heads, length = query_BHLD.shape[1:3]
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
