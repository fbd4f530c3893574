"""A prompt of either form as one matrix [P, C], a row for each virtual token: what reparametrisations compute with.

C is H for an embedding prompt, and the sum of K·D over all layers' keys and values for a KV prompt: k of layer 0, its
heads one after the other, then v of layer 0, k of layer 1 and so on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt, Prompt


def to_table(prompt: Prompt) -> Tensor:
    """[P, C]."""
    if isinstance(prompt, EmbeddingPrompt):
        return prompt.embeddings
    return torch.cat([tensor.transpose(0, 1).flatten(1) for tensor in prompt.tensors().values()], dim=1)


def from_table(table_PC: Tensor, like: Prompt) -> Prompt:
    """The prompt whose table this is, with the form, layers and heads of `like`, whose values are not looked at."""
    if isinstance(like, EmbeddingPrompt):
        return EmbeddingPrompt(table_PC)
    widths = [tensor.shape[0] * tensor.shape[2] for tensor in like.tensors().values()]
    parts = iter(table_PC.split(widths, dim=1))

    def part(shaped: Tensor) -> Tensor:
        heads, _, size = shaped.shape
        return next(parts).view(-1, heads, size).transpose(0, 1)

    return KVPrompt(tuple(None if kv is None else (part(kv[0]), part(kv[1])) for kv in like.layers))
