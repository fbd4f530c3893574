"""Sections "layers" and "heads": the effect that is lost when layers or heads do not see the prompt.

In these layers, or heads, nothing attends to the virtual tokens; everywhere else they stay. That is activation patching
(Vig et al. 2020, https://arxiv.org/abs/2004.12265; Meng et al. 2022, https://arxiv.org/abs/2202.05262) in the form that
keys and values make exact.

    loss of a band = 1 − R of the prompt that these layers do not see

Losses do not add up: layers make up for each other.

Shapes: N answer tokens, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.errors import UnsupportedModelError
from softprompt.inspection.effect import PromptEffect
from softprompt.prefix.layer_ablation import AblatedRows, Ablation
from softprompt.prefix.prepare import packs_rows

_READ_LAYERS = 2  # whose heads are read


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


@dataclass(frozen=True)
class HeadLoss:
    """One query head.

    Attributes:
        layer, head: its numbers.
        lost: share of the effect that is lost when it does not see the soft prompt.
    """

    layer: int
    head: int
    lost: float


def layer_bands(effect: PromptEffect, size: int = 1) -> tuple[LayerBand, ...]:
    """Hide the soft prompt from each band of `size` layers in turn.

    Raises UnsupportedModelError for models whose rows do not follow keys and values (recurrent states, encoders).
    """
    rows, count = _rows(effect), len(effect.lm.geometry.layers)
    bands = [range(first, min(first + size, count)) for first in range(0, count, size)]
    lost = _lost(effect, rows, [Ablation(band) for band in bands])
    return tuple(LayerBand(band[0], band[-1], share) for band, share in zip(bands, lost, strict=True))


def head_losses(effect: PromptEffect, bands: Sequence[LayerBand]) -> tuple[HeadLoss, ...]:
    """Hide the soft prompt from each query head of the most read layers in turn.

    Those are two layers of the bands with the largest losses: the ones that lose most alone.

    Raises as `layer_bands`.
    """
    rows = _rows(effect)
    ranked = sorted(bands, key=lambda band: -band.lost)
    layers = [layer for band in ranked for layer in range(band.first, band.last + 1)]
    tried = layers[: max(_READ_LAYERS, ranked[0].last - ranked[0].first + 1)]
    alone = dict(zip(tried, _lost(effect, rows, [Ablation([layer]) for layer in tried]), strict=True))
    most_read = sorted(sorted(alone, key=lambda layer: -alone[layer])[:_READ_LAYERS])
    heads = [(layer, head) for layer in most_read for head in range(effect.lm.geometry.n_heads)]
    lost = _lost(effect, rows, [Ablation([layer], [head]) for layer, head in heads])
    return tuple(HeadLoss(*place, share) for place, share in zip(heads, lost, strict=True))


def _rows(effect: PromptEffect) -> AblatedRows:
    """The effect's rows, of which the tokens that predict the answers count."""
    lm = effect.lm
    if lm.is_encoder_decoder or not packs_rows(lm):
        what = "the prompt can be hidden from layers only where all that rows see of it are keys and values"
        raise UnsupportedModelError(what, where=lm.name)
    answered = [example for example in effect.examples if any(example.mask)]
    counted = [[*example.mask[1:], False] for example in answered]
    return AblatedRows(lm, effect.formatted.prefix(lm), [example.ids for example in answered], counted)


def _lost(effect: PromptEffect, rows: AblatedRows, ablations: Sequence[Ablation]) -> list[float]:
    return [1 - share for share in effect.shares(rows.states(ablations))]
