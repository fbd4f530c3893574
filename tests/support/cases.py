"""Prompts, prefixes and rows that the laws are tried on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache

from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.transformers_compat import CACHE_ARGUMENT
from softprompt.prefix.cache import KV
from softprompt.prefix.kv import Prefix
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from tests.support.tiny import SPECIAL, VOCAB

FIRST, LAST = len(SPECIAL), VOCAB - 40  # ids of plain bytes


def text_ids(n: int, seed: int) -> list[int]:
    """`n` ids of plain bytes at random."""
    return torch.randint(FIRST, LAST, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def random_prompt(lm: FrozenLM, form: str, n_tokens: int, seed: int, *, grad: bool = False) -> SoftPrompt:
    """A prompt like no text: noise as large as the model's own embeddings, keys and values."""
    draw = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(lm.device).requires_grad_(grad)

    if form == "embedding":
        return EmbeddingPrompt(noise(n_tokens, lm.geometry.hidden))
    layers = [
        None if s is None else (noise(s.kv_heads, n_tokens, s.key_dim), noise(s.kv_heads, n_tokens, s.value_dim))
        for s in lm.geometry.layers
    ]
    return KVPrompt(tuple(layers))


def mixed_prefixes(lm: FrozenLM, *, grad: bool = False) -> list[Prefix]:
    """Every kind of prefix in one batch: both forms, both lengths, with and without text around, and none at all.

    The first is longer than the tiny models' sliding window of 11.
    """
    return [
        Prefix(random_prompt(lm, "embedding", 8, 1, grad=grad), (3, 9), (20, 21, 22)),
        Prefix(random_prompt(lm, "kv", 5, 2, grad=grad), (), (30, 31)),
        Prefix(random_prompt(lm, "kv", 10, 3, grad=grad)),
        Prefix(random_prompt(lm, "embedding", 2, 4, grad=grad)),
        Prefix(None, (40,), (41, 42)),
        Prefix(),
    ]


def examples(lengths: Sequence[int], seed: int = 0) -> list[Example]:
    """Rows whose last half is learned, and some tokens in between at random; of one token none is."""
    draw, rows = torch.Generator().manual_seed(seed), []
    for i, n in enumerate(lengths):
        learned = torch.rand(n, generator=draw) < 0.2
        learned[(n + 1) // 2 :] = True
        learned[0] = False
        rows.append(Example(tuple(text_ids(n, seed + i)), tuple(learned.tolist()), f"f.jsonl:{i + 1}"))
    return rows


def pairs(layers: Sequence[KV]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of all layers that have some."""
    return [kv for kv in layers if kv is not None]


def cached(lm: FrozenLM, ids: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """What Transformers' own cache holds of a text, per layer (keys [K, T, D], values [K, T, D'])."""
    cache: Any = DynamicCache()
    with torch.no_grad():
        lm.hf_model(input_ids=torch.tensor([ids], device=lm.device), **{CACHE_ARGUMENT: cache}, use_cache=True)
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def check_close(ours: Tensor, wanted: Tensor) -> None:
    """Equal logits but for rounding: float32, another order of sums."""
    assert_close(ours, wanted, rtol=1e-4, atol=5e-5)


def same_kv(one: Sequence[KV], other: Sequence[KV]) -> bool:
    """Bit by bit."""
    return len(one) == len(other) and all(
        torch.equal(mine, theirs)
        for kvs in zip(pairs(one), pairs(other), strict=True)
        for mine, theirs in zip(*kvs, strict=True)
    )


def gradient_tensors(prefixes: Sequence[Prefix]) -> list[Tensor]:
    """All tensors of the prompts."""
    return [t for prefix in prefixes if prefix.prompt is not None for t in prefix.prompt.tensors().values()]
