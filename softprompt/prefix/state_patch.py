"""Puts hidden states into chosen places of a text after chosen layers: activation patching into another prompt.

Ghandeharioun et al. 2024, "Patchscopes", https://arxiv.org/abs/2401.06102.

Shapes: B rows, L tokens, P places, H width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix, embedded, embedded_ids
from softprompt.prefix.layer_states import layers_of


@torch.no_grad()
def states_after_layers(lm: FrozenLM, prefix: Prefix) -> list[Tensor]:
    """After each layer the hidden states [L, H] of a prefix alone, before any final norm.

    Raises UnsupportedModelError for a model that keeps its layers in no list.
    """
    layers, outputs = layers_of(lm), dict[nn.Module, Tensor]()

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        outputs[module] = _states(output)[0].detach().clone()

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(keep).remove)
        lm.backbone.run(embeds_BLH=embedded(lm, prefix)[None], embedded_ids_BL=embedded_ids(lm, prefix)[None])
    return [outputs[layer] for layer in layers]


@contextlib.contextmanager
def patched_states(lm: FrozenLM, layer: int, places: Sequence[int], states_PH: Tensor) -> Iterator[None]:
    """In this block, after this layer the hidden states at these places of every row are the given ones.

    For passes over whole texts alone: a pass of fewer tokens than the last place stays as it is.
    """

    def patch(module: nn.Module, inputs: object, output: object) -> object:
        states_BLH = _states(output)
        if states_BLH.shape[1] <= max(places):
            return output
        patched = states_BLH.clone()
        patched[:, list(places)] = states_PH.to(patched)
        return (patched, *output[1:]) if isinstance(output, tuple) else patched

    handle = layers_of(lm)[layer].register_forward_hook(patch)
    try:
        yield
    finally:
        handle.remove()


def _states(output: object) -> Tensor:
    states = output[0] if isinstance(output, tuple) else output
    assert isinstance(states, Tensor), "a layer returns its hidden states first"
    return states
