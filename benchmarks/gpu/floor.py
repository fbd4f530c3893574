"""The floor of a training step: its matrix products alone, as one sequence without gaps between them.

Every weight of the layers once forward and once for the input's gradient, each on all tokens of the step together
(virtual ones and those of the rows), and the head at learned tokens. No attention, no norms, nothing else. On a GPU the
sequence is one CUDA graph, so that no time passes between kernels; of quantized weights it is that of bfloat16 ones, in
which their products are computed, too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.cuda_graphs import capturable
from softprompt.objectives.next_token import learned_tokens


def fused_floor(lm: FrozenLM, rows: list[Example], virtual: int) -> Callable[[], None]:
    """The sequence as a function to call many times."""
    count = virtual + sum(len(row.ids) for row in rows)
    pairs = [(weight, count) for weight in layer_weights(lm)]
    pairs.append((lm.embedding.weight, learned_tokens(rows)))  # the head, or what has its shape
    sizes = {(n, width) for weight, n in pairs for width in weight.shape}
    inputs = {size: torch.randn(size, device=lm.device, dtype=lm.dtype) for size in sizes}

    @torch.no_grad()
    def sequence() -> None:
        for weight, n in pairs:
            torch.matmul(inputs[n, weight.shape[1]], weight.T)
            torch.matmul(inputs[n, weight.shape[0]], weight)

    return capturable(lm, sequence)


def layer_weights(lm: FrozenLM) -> list[Tensor]:
    """Weights [O, K] of all linear layers but the head; in place of quantized ones random ones of their sizes."""
    found = list[Tensor]()
    for layer in lm.backbone.module.modules():
        if isinstance(layer, nn.Linear):
            weight, shape = layer.weight, (layer.out_features, layer.in_features)
            plain = type(weight.data) is Tensor and weight.is_floating_point()
            found.append(weight.detach() if plain else torch.randn(shape, device=lm.device, dtype=lm.dtype))
    return found


def floor_flops(lm: FrozenLM, rows: list[Example], virtual: int) -> float:
    """Floating-point operations of the sequence."""
    count = virtual + sum(len(row.ids) for row in rows)
    sizes = [one.out_features * one.in_features for one in lm.backbone.module.modules() if isinstance(one, nn.Linear)]
    return 4.0 * (count * sum(sizes) + learned_tokens(rows) * lm.embedding.weight.numel())
