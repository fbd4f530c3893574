"""Encoder–decoders the plain way, one row at a time: the encoder written out as in the T5 paper, with a prefix's keys
and values before it; the decoder as Transformers runs it after a cache that holds a prefix.

Raffel et al.: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer. JMLR 2020.
https://arxiv.org/abs/1910.10683
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache, EncoderDecoderCache

from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.transformers_compat import CACHE_ARGUMENT
from softprompt.prefix.cache import KV
from softprompt.prefix.kv import Prefix
from softprompt.prefix.seq2seq import SITES
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from tests.support.cases import random_prompt

END = 2  # the tiny tokenizer's, after every text that an encoder reads
SUBSETS = (("encoder",), ("decoder",), ("cross",), ("encoder", "cross"), SITES)


def check_close(ours: Tensor, wanted: Tensor) -> None:
    """Equal logits but for rounding, of which there is more than elsewhere: T5 does not scale its attention scores."""
    assert_close(ours, wanted, rtol=1e-4, atol=4e-4)


def only(lm: FrozenLM, prompt: SoftPrompt, sites: Sequence[str]) -> KVPrompt:
    """A KV prompt that leaves the other sites alone."""
    assert isinstance(prompt, KVPrompt)
    layers = zip(prompt.layers, lm.geometry.sites, strict=True)
    return KVPrompt(tuple(kv if site in sites else None for kv, site in layers))


def mixed(lm: FrozenLM, *, grad: bool = False) -> list[Prefix]:
    """Both forms, every site alone and together, unequal lengths, with and without text around, and none at all."""
    kv = [
        Prefix(only(lm, random_prompt(lm, "kv", 3 + i, i, grad=grad), sites), (), (30, 31) if i % 2 else ())
        for i, sites in enumerate(SUBSETS)
    ]
    return [
        Prefix(random_prompt(lm, "embedding", 4, 8, grad=grad), (3, 9), (20, 21)),
        *kv,
        Prefix(random_prompt(lm, "embedding", 1, 9, grad=grad)),
        Prefix(None, (40,), (41, 42)),
        Prefix(),
    ]


def at(lm: FrozenLM, prefix: Prefix, site: str) -> list[KV]:
    """The prefix's keys and values at a site, per layer."""
    if not isinstance(prefix.prompt, KVPrompt):
        return [None] * lm.geometry.sites.count(site)
    return [kv for kv, own in zip(prefix.prompt.layers, lm.geometry.sites, strict=True) if own == site]


def bucket(distance: int, buckets: int, most: int) -> int:
    """T5's bucket of a distance in the encoder: half of them for each direction, exact when near, else logarithmic."""
    half = buckets // 2
    side, near, size = (half if distance > 0 else 0), half // 2, abs(distance)
    if size < near:
        return side + size
    return side + min(half - 1, near + int(math.log(size / near) / math.log(most / near) * (half - near)))


def plain_encoder(lm: FrozenLM, x_LH: Tensor, prefix: Sequence[KV]) -> Tensor:
    """Final states [L, H]; the prefix is at positions 0…P-1, the tokens from P on."""
    encoder: Any = lm.hf_model.get_encoder()
    length = len(x_LH)
    for i, block in enumerate(encoder.block):
        layer = block.layer[0]
        own, normed = layer.SelfAttention, layer.layer_norm(x_LH)
        q, k, v = (p(normed).view(length, own.n_heads, -1).transpose(0, 1) for p in (own.q, own.k, own.v))
        if (kv := prefix[i]) is not None:
            k, v = torch.cat([kv[0], k], 1), torch.cat([kv[1], v], 1)
        start = k.shape[1] - length
        ranks = [
            [
                bucket(key - start - query, lm.hf_model.config.relative_attention_num_buckets, 20)
                for key in range(k.shape[1])
            ]
            for query in range(length)
        ]
        biased = own if own.has_relative_attention_bias else encoder.block[0].layer[0].SelfAttention
        scores = q @ k.transpose(1, 2) + biased.relative_attention_bias(
            torch.tensor(ranks, device=x_LH.device)
        ).permute(2, 0, 1)
        x_LH = x_LH + own.o((scores.softmax(-1) @ v).transpose(0, 1).reshape(length, -1))
        x_LH = block.layer[-1](x_LH)
    return encoder.final_layer_norm(x_LH)


def plain_logits(lm: FrozenLM, prefix: Prefix, text: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Logits [len(answer), V] that predict an answer, with gradient."""
    parts = [lm.embed(torch.tensor(prefix.lead, dtype=torch.long, device=lm.device))]
    if isinstance(prefix.prompt, EmbeddingPrompt):
        parts.append(prefix.prompt.embeddings)
    parts.append(lm.embed([*prefix.follow, *text, END]))
    states = plain_encoder(lm, torch.cat(parts), at(lm, prefix, "encoder"))
    caches = [DynamicCache(), DynamicCache()]
    for cache, site in zip(caches, ("decoder", "cross"), strict=True):
        for i, kv in enumerate(at(lm, prefix, site)):
            if kv is not None:
                cache.update(kv[0][None], kv[1][None], i)
    both = EncoderDecoderCache(*caches)
    both.is_updated = {}  # the cross-attention's keys and values are not known yet: append them
    decoder: Any = lm.hf_model.get_decoder()
    ids = torch.tensor([[0, *answer[:-1]]], device=lm.device)
    out = decoder(input_ids=ids, encoder_hidden_states=states[None], **{CACHE_ARGUMENT: both}, use_cache=True)
    return lm.logits(out.last_hidden_state[0])


def own_logits(lm: FrozenLM, text: Sequence[int], answer: Sequence[int]) -> Tensor:
    """What the model itself says, fed ids and labels and nothing else."""
    ids = torch.tensor([[*text, END]], device=lm.device)
    return lm.hf_model(input_ids=ids, labels=torch.tensor([list(answer)], device=lm.device)).logits[0]
