"""Relative difference that a proof allows between two ways to compute the same numbers.

Full precision leaves a thousandth, half precision more, since it rounds in another order with other shapes. A quantized
model may round activations, too (LLM.int8()): a difference in the last digit then grows to a percent. So the noise of a
quantized model is measured, as the change of its logits when its embeddings change by a rounding error, and when other
rows are in the batch. The proof allows three times that.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.quantized import is_quantized

_TOLERANCE = {torch.float32: 1e-3}
LARGEST = 0.1  # of half precision, and of any model
_MARGIN = 3.0  # times the noise
_TRIALS = 4  # rounding errors, drawn by seed
_TOKENS = 8


def tolerance(lm: FrozenLM) -> float:
    """The relative difference that this model's proofs allow."""
    plain = _TOLERANCE.get(lm.dtype, LARGEST)
    if plain == LARGEST or not is_quantized(lm.hf_model):
        return plain
    return min(LARGEST, max(plain, _MARGIN * lm.extension(_Noise).relative))


@final
class _Noise:
    """The relative change of a model's logits by rounding errors; measured once."""

    def __init__(self, lm: FrozenLM) -> None:
        ids = torch.arange(_TOKENS, device=lm.device)[None] % lm.geometry.vocab
        wanted = _logits(lm, ids)
        others = _logits(lm, torch.cat([ids, (7 * ids + 3) % lm.geometry.vocab]))[:1]
        noisy = [others, *(_logits(lm, ids, seed) for seed in range(_TRIALS))]
        self.relative = max(((logits - wanted).norm() / wanted.norm().clamp_min(1e-6)).item() for logits in noisy)


@torch.no_grad()
def _logits(lm: FrozenLM, ids_BL: Tensor, seed: int | None = None) -> Tensor:
    """The model's logits [B, L, V]; with a seed, its embeddings off by a rounding error up or down."""

    def disturb(module: object, inputs: object, embeddings: Tensor) -> Tensor:
        signs = torch.randint(2, embeddings.shape, generator=torch.Generator().manual_seed(seed or 0)) * 2 - 1
        return embeddings * (1 + torch.finfo(embeddings.dtype).eps * signs.to(embeddings))

    hook = None if seed is None else lm.embedding.register_forward_hook(disturb)
    decoder = {"decoder_input_ids": ids_BL} if lm.is_encoder_decoder else {}
    try:
        return lm.hf_model(input_ids=ids_BL, use_cache=False, **decoder).logits.float()
    finally:
        if hook is not None:
            hook.remove()
