"""Section "attention": where the answers' tokens read the virtual tokens.

    mass[l, i] = mean over the answers' tokens, summed over heads and divided by their number, of the attention that
                 layer l pays to virtual token i

Attention mass alone misleads: a first token that all heads rest on (a sink, Xiao et al. 2023,
https://arxiv.org/abs/2309.17453) has much mass and little effect. The token with the most mass in most layers is named
apart, and the section `layers` says what is lost without a layer (Jain, Wallace 2019, https://arxiv.org/abs/1902.10186).

Shapes: K key/value heads, S prefix slots, P virtual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from softprompt.errors import UnsupportedModelError
from softprompt.inspection.effect import PromptEffect
from softprompt.prefix.attention_scores import attention_mass
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import packs_rows, prepare_prefixes


@dataclass(frozen=True)
class AttentionReading:
    """Attention of the answers' tokens to the virtual tokens.

    Attributes:
        by_layer: for each layer [P] the mean share of attention; empty for a layer without keys.
        sink: number of the virtual token with the most attention in most layers; the others are judged without it.
        total: [layers] share that goes to all virtual tokens together.
        besides_sink: [layers] the same without the sink.
    """

    by_layer: tuple[tuple[float, ...], ...]
    sink: int
    total: tuple[float, ...]
    besides_sink: tuple[float, ...]


@torch.no_grad()
def attention_reading(effect: PromptEffect) -> AttentionReading:
    """Measure where the answers' tokens read the soft prompt.

    Raises UnsupportedModelError for models whose rows do not follow keys and values, or that return no weights.
    """
    lm = effect.lm
    if lm.is_encoder_decoder or not packs_rows(lm):
        what = "attention to virtual tokens is measured only where rows follow their keys and values"
        raise UnsupportedModelError(what, where=lm.name)
    prefix = effect.formatted.prefix(lm)
    begin = len(prefix.lead)
    rows = [Row(example.ids) for example in effect.examples]
    counted = [_predicting(example.mask) for example in effect.examples]
    masses = attention_mass(lm, prepare_prefixes(lm, [prefix]), rows, counted)
    tokens = sum(map(sum, counted))
    shares: list[tuple[float, ...]] = []
    for mass_KS in masses:
        part = None if mass_KS is None else mass_KS[:, begin : begin + effect.prompt.n_tokens].sum(0)
        shares.append(() if part is None else tuple((part / (tokens * lm.geometry.n_heads)).tolist()))
    most = [max(range(len(layer)), key=layer.__getitem__) for layer in shares if layer]
    sink = max(set(most), key=most.count)
    return AttentionReading(
        by_layer=tuple(shares),
        sink=sink,
        total=tuple(sum(layer) for layer in shares),
        besides_sink=tuple(sum(layer) - (layer[sink] if layer else 0.0) for layer in shares),
    )


def _predicting(mask: tuple[bool, ...]) -> list[bool]:
    """The tokens before each learned one: those that predict the answer."""
    return [*mask[1:], False]
