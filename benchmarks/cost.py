"""The cost of a way of adapting a model, beside its quality: numbers, bytes on disk, cache and decoding speed."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import torch

from softprompt.data.records import Record
from softprompt.data.spans import prompt_ids
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.models.device import wait_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.prepare import prepare_prefixes, start_decoding

DECODED, REPEATS = 32, 3  # tokens, and runs of which the median counts


@torch.no_grad()
def decoding_speed(lm: FrozenLM, formatted: FormattedPrompt, row: Record) -> float:
    """Tokens a second of one row that is decoded greedily after its prompt, once the first token is there."""
    prefixes = prepare_prefixes(lm, [formatted.prefix(lm)])
    body = prompt_ids(row, formatted.template, lm.tokenizer)
    speeds = []
    for _ in range(REPEATS):
        session = start_decoding(lm, prefixes, [body], [0], DECODED)
        token = lm.logits(session.hidden).argmax(-1)
        wait_for(lm.device)
        begin = time.perf_counter()
        for _ in range(DECODED):
            token = lm.logits(session.step(token)).argmax(-1)
        wait_for(lm.device)
        speeds.append(DECODED / (time.perf_counter() - begin))
    return median(speeds)


def cost(
    lm: FrozenLM, formatted: FormattedPrompt, row: Record, parameters: int, disk_bytes: int
) -> dict[str, int | float]:
    """What a prompt costs, as JSON: `kv_bytes` of its keys and values, `tokens_per_second` after them."""
    prefix = formatted.prefix(lm)
    virtual = prefix.prompt.n_tokens if prefix.prompt else 0
    tokens = len(prefix.lead) + virtual + len(prefix.follow)
    return {
        "parameters": parameters,
        "disk_bytes": disk_bytes,
        "prefix_tokens": tokens,
        "kv_bytes": tokens * lm.geometry.kv_bytes_per_token(lm.dtype.itemsize),
        "tokens_per_second": round(decoding_speed(lm, formatted, row), 2),
    }


def folder_bytes(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
