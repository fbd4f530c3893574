"""A random two-layer Llama whose heads are as wide as vLLM's CPU kernels want them, and what `generate` says after
prefixes of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers as tf

from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from tests.support.cases import random_prompt
from tests.support.tiny import VOCAB, tiny_tokenizer

BLOCK = 32  # tokens; the smallest that the CPU kernels have
CONTEXT = 512


def save_model(folder: Path) -> Path:
    """Random float32 weights large enough that every part of the model matters."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=64,
        max_position_embeddings=CONTEXT,
    )
    model = tf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    tiny_tokenizer(bos=True).save_pretrained(folder)
    return folder


def tiny(base: Path) -> FrozenLM:
    """The model as the library has it."""
    return load_model(str(base), dtype="float32", device="cpu")


def prefixes(lm: FrozenLM) -> list[Prefix]:
    """Both forms, shorter and longer than a block, whole blocks, text before and after; and none."""
    return [
        Prefix(random_prompt(lm, "embedding", 5, 1), (3, 9), (20, 21, 22)),
        Prefix(random_prompt(lm, "kv", 7, 2), (), (30, 31)),
        Prefix(),
        Prefix(random_prompt(lm, "kv", BLOCK, 3)),
        Prefix(random_prompt(lm, "embedding", BLOCK + 1, 4)),
        Prefix(random_prompt(lm, "kv", 3 * BLOCK, 5), (), (8,)),
        Prefix(random_prompt(lm, "embedding", 2 * BLOCK - 1, 6), (3,), ()),
        Prefix(random_prompt(lm, "kv", 1, 7)),
    ]


@torch.no_grad()
def generated(lm: FrozenLM, prefix: Prefix, ids: Sequence[int], new: int, ends: Sequence[int] = ()) -> list[int]:
    """What `generate` answers to one row alone, greedily."""
    (answer,) = decode_batch(lm, prepare_prefixes(lm, [prefix]), [list(ids)], [0], Sampling(new), end_ids=[list(ends)])
    return answer.ids
