"""The hidden states of a prefix after every layer, and the final norm that the head expects them after.

Shapes: L tokens of the prefix, H width.
"""

from __future__ import annotations

import contextlib
import itertools

import torch
from torch import Tensor, nn

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix, embedded, embedded_ids

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # relative, of the norm's proof
_HALF_TOLERANCE = 2e-2  # half precision rounds in another order


@torch.no_grad()
def normed_layer_states(lm: FrozenLM, prefix: Prefix) -> list[Tensor]:
    """After each layer the hidden states [L, H] of a prefix, with the final norm applied: ready for `lm.logits`.

    The states of the last layer are the model's own final hidden states, which proves the norm.

    Raises UnsupportedModelError: an encoder–decoder, or a model whose layers and final norm are not found.
    """
    if lm.is_encoder_decoder:
        raise UnsupportedModelError("an encoder–decoder has no final states of its input", where=lm.name)
    layers, beside = layers_of(lm), _modules_beside_layers(lm)
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            outputs[module] = first

    with contextlib.ExitStack() as stack:
        for module in layers:
            stack.callback(module.register_forward_hook(keep).remove)
        run = embedded(lm, prefix)[None]
        final_LH = lm.backbone.run(embeds_BLH=run, embedded_ids_BL=embedded_ids(lm, prefix)[None])[0]
    if any(layer not in outputs for layer in layers):
        raise UnsupportedModelError("not every layer returns hidden states", where=lm.name)
    last = outputs[layers[-1]]
    pairs = [nn.Sequential(first, second) for first, second in itertools.permutations(beside, 2)]
    for norm in (*beside, nn.Identity(), *pairs):  # OPT projects the normed states
        if _agree(norm, last, final_LH):
            return [norm(outputs[layer].to(last.device))[0].to(lm.device) for layer in layers]
    raise UnsupportedModelError("the norm between the last layer and the head is not found", where=lm.name)


def _agree(norm: nn.Module, last_1LH: Tensor, final_LH: Tensor) -> bool:
    """Whether the norm leads from the last layer's states to the final ones."""
    try:
        normed = norm(last_1LH)
    except (RuntimeError, TypeError, ValueError):  # another kind of module
        return False
    if not isinstance(normed, Tensor) or normed.shape[1:] != final_LH.shape:
        return False
    difference = (normed[0].to(final_LH.device) - final_LH).abs().max() / final_LH.abs().max().clamp_min(1e-9)
    return difference.item() < _TOLERANCE.get(final_LH.dtype, _HALF_TOLERANCE)


def layers_of(lm: FrozenLM) -> list[nn.Module]:
    """The layers of a causal model: the longest list of modules in its backbone.

    Raises UnsupportedModelError if there is none.
    """
    return list(_list_of_layers(lm)[1])


def _modules_beside_layers(lm: FrozenLM) -> list[nn.Module]:
    """The modules of the same parent, without lists and embeddings: among them the final norm."""
    parent = _list_of_layers(lm)[0]
    return [part for part in parent.children() if not isinstance(part, nn.ModuleList | nn.Embedding)]


def _list_of_layers(lm: FrozenLM) -> tuple[nn.Module, nn.ModuleList]:
    """The longest of the outermost lists (layers may hold lists of experts), and the module that holds it."""
    backbone, found = lm.backbone.module, list[tuple[int, int, str]]()
    for name, part in backbone.named_modules():
        if isinstance(part, nn.ModuleList) and len(part):
            found.append((name.count("."), -len(part), name))
    if not found:
        raise UnsupportedModelError("the model keeps its layers in no list", got=type(backbone).__name__)
    name = min(found)[2]
    layers = backbone.get_submodule(name)
    assert isinstance(layers, nn.ModuleList)
    return backbone.get_submodule(name.rpartition(".")[0]), layers
