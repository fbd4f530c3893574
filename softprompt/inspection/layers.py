"""Section "layers": the effect that is lost when the prompt is hidden from one band of layers.

In these layers nothing attends to the virtual tokens; everywhere else they stay. That is activation patching (Vig et
al. 2020, https://arxiv.org/abs/2004.12265; Meng et al. 2022, https://arxiv.org/abs/2202.05262) in the form that keys
and values make exact.

    loss of a band = 1 − R of the prompt that these layers do not see

Losses do not add up: layers make up for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from softprompt.errors import UnsupportedModelError
from softprompt.inspection.effect import PromptEffect
from softprompt.prefix.layer_ablation import hide_virtual_tokens
from softprompt.prefix.prepare import packs_rows


@dataclass(frozen=True)
class LayerBand:
    """Neighboring layers.

    Attributes:
        first, last: their numbers, both included.
        lost: share of the effect that is lost when they do not see the soft prompt.
    """

    first: int
    last: int
    lost: float


def layer_bands(effect: PromptEffect, size: int = 1) -> tuple[LayerBand, ...]:
    """Hide the soft prompt from each band of `size` layers in turn.

    Raises UnsupportedModelError for models whose rows do not follow keys and values (recurrent states, encoders).
    """
    lm = effect.lm
    if lm.is_encoder_decoder or not packs_rows(lm):
        what = "the prompt can be hidden from layers only where all that rows see of it are keys and values"
        raise UnsupportedModelError(what, where=lm.name)
    count = len(lm.geometry.layers)
    return tuple(
        LayerBand(first, min(first + size, count) - 1, _lost(effect, range(first, min(first + size, count))))
        for first in range(0, count, size)
    )


@torch.no_grad()
def _lost(effect: PromptEffect, layers: Sequence[int]) -> float:
    begin = len(effect.formatted.prefix(effect.lm).lead)
    with hide_virtual_tokens(effect.lm, layers, range(begin, begin + effect.prompt.n_tokens)):
        return 1 - effect.recovered([effect.prompt])[0]
