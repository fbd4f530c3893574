"""Passes that begin at a layer, from hidden states that are known: what lies below is not computed again.

The modules of the layers below return the known states instead of running. That is exact where nothing else leads from
a layer to a later one. Some models share keys and values between layers (Gemma 3n), so it is tried on the loaded model.

Shapes: G bins, L tokens per bin, H width.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor, nn

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix, run_prefixes
from softprompt.prefix.layer_states import layers_of
from softprompt.prefix.packed import pack_rows, run_packed
from softprompt.prefix.packing import Row
from softprompt.prefix.proof import PROBE_TOKENS, failure_of, logit_difference, probe_ids

_LEAD = 3  # tokens of the trial before its row
_FORWARD = "forward"


@final
class LayerStart:
    """Whether this model's passes can begin at a layer: the extension of a FrozenLM. A trial on six tokens says so.

    Attributes:
        reason: why they cannot, or "".
    """

    def __init__(self, lm: FrozenLM) -> None:
        self.reason = failure_of(lambda: self._difference(lm))

    @torch.no_grad()
    def _difference(self, lm: FrozenLM) -> str:
        ids = probe_ids(lm, PROBE_TOKENS)
        prefix_kv = run_prefixes(lm, [Prefix(lead=tuple(ids[:_LEAD]))])
        bins = pack_rows(lm, prefix_kv, [Row(ids[_LEAD:])])
        with recorded_layers(lm) as outputs:
            wanted = run_packed(lm, prefix_kv, bins)
        count = len(layers_of(lm))
        for layer in sorted({1, count // 2, count - 1} & set(range(1, count))):
            with started_at_layer(lm, layer, outputs[layer - 1]):
                found = run_packed(lm, prefix_kv, bins)
            if reason := logit_difference(lm, lm.logits(found[0]), lm.logits(wanted[0]), f"from layer {layer} on"):
                return reason
        return ""


@contextlib.contextmanager
def recorded_layers(lm: FrozenLM) -> Iterator[list[Tensor | tuple[object, ...]]]:
    """The outputs of all layers in the order of their numbers, filled by a pass in this block.

    Raises UnsupportedModelError for a model that keeps its layers in no list.
    """
    outputs, owner = list[Tensor | tuple[object, ...]](), threading.get_ident()

    def keep(module: nn.Module, inputs: object, output: Tensor | tuple[object, ...]) -> None:
        if threading.get_ident() == owner:
            outputs.append(output)

    with contextlib.ExitStack() as stack:
        for layer in layers_of(lm):
            stack.callback(layer.register_forward_hook(keep).remove)
        yield outputs


@contextlib.contextmanager
def started_at_layer(lm: FrozenLM, layer: int, below: Tensor | tuple[object, ...], copies: int = 1) -> Iterator[None]:
    """In this block, this thread's passes begin at a layer.

    Args:
        below: what the layer before it returned for the same bins, as recorded; of no meaning for layer 0.
        copies: the bins of the pass are so many copies of those, one after the other.
    """
    owner, skipped = threading.get_ident(), layers_of(lm)[:layer]
    known = _repeated(below, copies)
    before = [vars(module).get(_FORWARD) for module in skipped]

    def replaced(module: nn.Module) -> object:
        plain = module.forward

        def forward(*args: object, **options: object) -> object:
            return known if threading.get_ident() == owner else plain(*args, **options)

        return forward

    try:
        for module in skipped:
            vars(module)[_FORWARD] = replaced(module)
        yield
    finally:
        for module, own in zip(skipped, before, strict=True):
            vars(module).pop(_FORWARD, None)
            if own is not None:
                vars(module)[_FORWARD] = own


def _repeated(output: Tensor | tuple[object, ...], copies: int) -> Tensor | tuple[object, ...]:
    """Hidden states [G, L, H] repeated along the bins; what else a layer returns is nothing."""
    if isinstance(output, Tensor):
        return output.repeat(copies, 1, 1)
    states = output[0]
    assert isinstance(states, Tensor), "a layer returns its hidden states first"
    return (states.repeat(copies, 1, 1), *(None for _ in output[1:]))
