"""Section "attention": where the answers' tokens read the virtual tokens.

    mass[l, i]   mean over the answers' tokens and over heads of the attention that layer l pays to virtual token i
    added[l, i]  the same mean of  α · ‖W_O v_i‖, divided by its sum over i: share of what the virtual tokens add
                 (Kobayashi et al. 2020, https://arxiv.org/abs/2004.10102)

Attention mass alone misleads: a first token that all heads rest on (a sink, Xiao et al. 2023,
https://arxiv.org/abs/2309.17453) has much mass and adds little. The token with the most mass in most layers is named
apart, and the section `layers` says what is lost without a layer (Jain, Wallace 2019, https://arxiv.org/abs/1902.10186).

Shapes: N answer tokens, H heads, S prefix slots, P virtual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.errors import UnsupportedModelError
from softprompt.inspection.effect import PromptEffect
from softprompt.prefix.attention_scores import attention_shares
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import packs_rows, prepare_prefixes
from softprompt.prefix.written_norms import written_norms

_POSITIONS = 16  # of answers, that are read apart


@dataclass(frozen=True)
class AttentionReading:
    """Attention of the answers' tokens to the virtual tokens.

    Attributes:
        by_layer: for each layer [P] the mean share of attention; empty for a layer without keys.
        by_head: for each layer [H] the mean share that each head pays to all virtual tokens; empty likewise.
        added: for each layer [P] shares of what the virtual tokens add; empty where it cannot be measured.
        by_position: for the first tokens of answers the mean share of all layers.
        sink: number of the virtual token with the most attention in most layers; the others are judged without it.
        total: [layers] share that goes to all virtual tokens together.
        besides_sink: [layers] the same without the sink.
    """

    by_layer: tuple[tuple[float, ...], ...]
    by_head: tuple[tuple[float, ...], ...]
    added: tuple[tuple[float, ...], ...]
    by_position: tuple[float, ...]
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
    virtual = slice(len(prefix.lead), len(prefix.lead) + effect.prompt.n_tokens)
    rows = [Row(example.ids) for example in effect.examples]
    counted = [_predicting(example.mask) for example in effect.examples]
    prefix_kv = prepare_prefixes(lm, [prefix])
    shares = [
        None if layer is None else layer[..., virtual] for layer in attention_shares(lm, prefix_kv, rows, counted)
    ]
    norms = [None if layer is None else layer[:, virtual] for layer in written_norms(lm, prefix_kv)]
    by_layer = [() if layer is None else _floats(layer.mean((0, 1))) for layer in shares]
    most = [max(range(len(layer)), key=layer.__getitem__) for layer in by_layer if layer]
    sink = max(set(most), key=most.count)
    return AttentionReading(
        by_layer=tuple(by_layer),
        by_head=tuple(() if layer is None else _floats(layer.sum(-1).mean(0)) for layer in shares),
        added=tuple(_added(layer, norm) for layer, norm in zip(shares, norms, strict=True)),
        by_position=_by_position([layer for layer in shares if layer is not None], counted),
        sink=sink,
        total=tuple(sum(layer) for layer in by_layer),
        besides_sink=tuple(sum(layer) - (layer[sink] if layer else 0.0) for layer in by_layer),
    )


def _added(shares_NHP: Tensor | None, norms_HP: Tensor | None) -> tuple[float, ...]:
    if shares_NHP is None or norms_HP is None:
        return ()
    added_P = (shares_NHP.mean(0) * norms_HP).sum(0)
    return _floats(added_P / added_P.sum().clamp_min(1e-30))


def _by_position(shares: Sequence[Tensor], counted: Sequence[Sequence[bool]]) -> tuple[float, ...]:
    """Mean share by an answer token's place in its answer."""
    total_N = torch.stack([layer.sum(-1).mean(1) for layer in shares]).mean(0)
    places_N = torch.tensor([place for row in counted for place in range(sum(row))])
    here = min(_POSITIONS, int(places_N.max()) + 1)
    return tuple(total_N[places_N == place].mean().item() for place in range(here))


def _predicting(mask: tuple[bool, ...]) -> list[bool]:
    """The tokens before each learned one: those that predict the answer."""
    return [*mask[1:], False]


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())
