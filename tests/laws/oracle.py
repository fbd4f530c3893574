"""The plain way that other libraries go: concatenate the virtual tokens before every row, one row at a time,
logits everywhere. Slow and obvious; every fast path is compared with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.transformers_compat import CACHE_ARGUMENT
from softprompt.prefix.kv import Prefix
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt


def plain_logits(lm: FrozenLM, prefix: Prefix, ids: Sequence[int]) -> Tensor:
    """Logits [T, V] at the T text positions of one row after one prefix, with gradient."""
    text = torch.tensor([list(prefix.follow) + list(ids)], device=lm.device)
    if isinstance(prefix.prompt, KVPrompt):
        cache = DynamicCache()
        for i, layer in enumerate(prefix.prompt.layers):
            if layer is not None:
                cache.update(layer[0][None], layer[1][None], i)
        out = lm.hf_model(input_ids=text, **{CACHE_ARGUMENT: cache}, use_cache=True)
    else:
        parts = [lm.embed(torch.tensor(prefix.lead, dtype=torch.long, device=lm.device))]
        if isinstance(prefix.prompt, EmbeddingPrompt):
            parts.append(prefix.prompt.embeddings)
        parts.append(lm.embed(text[0]))
        out = lm.hf_model(inputs_embeds=torch.cat(parts)[None], use_cache=False)
    return out.logits[0, -len(ids) :]


@torch.no_grad()
def given_logprobs(lm: FrozenLM, prefix: Prefix, ids: Sequence[int]) -> list[tuple[int, Tensor | None]]:
    """Words of the prefix and text, each with all log-probabilities [V] before it, from one pass with everything."""
    text = [*prefix.lead, *prefix.follow, *ids]
    if isinstance(prefix.prompt, KVPrompt):
        cache = DynamicCache()
        for i, layer in enumerate(prefix.prompt.layers):
            if layer is not None:
                cache.update(layer[0][None], layer[1][None], i)
        logits_TV = lm.hf_model(
            input_ids=torch.tensor([text], device=lm.device), **{CACHE_ARGUMENT: cache}, use_cache=True
        ).logits[0]
        before: list[Tensor | None] = [None, *logits_TV[:-1].log_softmax(-1)]
    else:
        parts = [lm.embed(torch.tensor(prefix.lead, dtype=torch.long, device=lm.device))]
        if isinstance(prefix.prompt, EmbeddingPrompt):
            parts.append(prefix.prompt.embeddings)
        parts.append(lm.embed(torch.tensor([*prefix.follow, *ids], device=lm.device)))
        logits_TV = lm.hf_model(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0]
        before = [None, *logits_TV[:-1].log_softmax(-1)]
        first = len(prefix.lead)
        del before[first : len(before) - len(prefix.follow) - len(ids)]
    return list(zip(text, before, strict=True))
