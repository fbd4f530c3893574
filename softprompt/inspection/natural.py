"""Keys and values of real tokens in context, which those of a soft prompt are compared with.

Shapes: S tokens, K key/value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from softprompt.data.template import bos_ids
from softprompt.errors import UnsupportedModelError
from softprompt.inspection.rows import NEUTRAL_TEXTS
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix, require_single
from softprompt.prefix.prepare import packs_rows, prepare_prefixes
from softprompt.prompts.kv_prompt import KVPrompt

_SKIPPED = 4  # tokens at the beginning, which serve as sinks and have odd keys


@dataclass(frozen=True)
class NaturalTokens:
    """Tokens of the neutral texts, one text after the other.

    Attributes:
        ids: [S].
        prompt: their keys and values, at the positions that they had.
        first: number of the first token that is like others: those before it serve as sinks.
    """

    ids: tuple[int, ...]
    prompt: KVPrompt
    first: int


@torch.no_grad()
def natural_tokens(lm: FrozenLM) -> NaturalTokens:
    """The neutral texts behind a BOS. Raises UnsupportedModelError where rows do not follow keys and values."""
    if lm.is_encoder_decoder or not packs_rows(lm):
        raise UnsupportedModelError("this model's rows do not follow keys and values", where=lm.name)
    ids = [*bos_ids(lm.tokenizer), *lm.encode(" ".join(NEUTRAL_TEXTS))]
    ids = ids[: lm.geometry.max_positions // 2]
    prefixes = require_single(prepare_prefixes(lm, [Prefix(lead=tuple(ids))]))
    layers = tuple(None if kv is None else (kv[0][0].float().cpu(), kv[1][0].float().cpu()) for kv in prefixes.layers)
    return NaturalTokens(tuple(ids), KVPrompt(layers), min(_SKIPPED, len(ids) - 1))
