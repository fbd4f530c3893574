"""How far our passes are from the plain ones: in float32 by rounding alone, elsewhere no further than plain passes are.

Whatever runs in fewer bits is compared with a *twin*: the same weights in float32, run by Transformers on each row
alone, with the virtual tokens in front. Beside our difference stands that of the plain way in the same bits: rounding
that nobody can avoid. A check holds if ours is at most `FACTOR` times that, or below `FLOAT32`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from tests.laws.oracle import plain_logits
from tests.laws.test_law2_step import plain_loss
from tests.support.cases import examples, gradient_tensors, mixed_prefixes

FLOAT32, FACTOR = 1e-3, 2.0  # relative to the norm; of some thousand sums in another order
LENGTHS = (9, 2, 15, 3, 7, 12, 40, 33)


def in_float32(lm: FrozenLM) -> FrozenLM:
    """The twin of a plain model: itself if it is in float32."""
    if lm.dtype == torch.float32:
        return lm
    return FrozenLM(copy.deepcopy(lm.hf_model).float(), lm.tokenizer, f"{lm.name}, float32")


def unpacked(lm: FrozenLM, plain: FrozenLM) -> FrozenLM:
    """The twin of a quantized model: what its layers make of unit vectors, as the weights of a float32 model.

    Args:
        plain: the model before it was quantized.
    """
    twin = copy.deepcopy(plain.hf_model).float()
    with torch.no_grad():
        for name, layer in quantized_layers(lm):
            unit_KK = torch.eye(layer.in_features, device=lm.device, dtype=lm.dtype)
            twin.get_submodule(name).get_parameter("weight").copy_(layer(unit_KK).T)
        for name, weight in lm.hf_model.named_parameters():  # what stayed plain may have been rounded on its way
            if name.endswith(("embed_tokens.weight", "norm.weight", "layernorm.weight", "lm_head.weight")):
                twin.get_parameter(name).copy_(weight)
    return FrozenLM(twin, lm.tokenizer, f"{lm.name}, unpacked")


def quantized_layers(lm: FrozenLM) -> list[tuple[str, nn.Linear]]:
    """Layers whose weights are no plain floating-point tensor."""
    layers = [(name, layer) for name, layer in lm.hf_model.named_modules() if isinstance(layer, nn.Linear)]
    return [(n, one) for n, one in layers if type(one.weight.data) is not Tensor or not one.weight.is_floating_point()]


def as_dtype(prefix: Prefix, dtype: torch.dtype) -> Prefix:
    """The prefix with its prompt in another dtype; gradients flow through."""
    if prefix.prompt is None:
        return prefix
    tensors = {name: tensor.to(dtype) for name, tensor in prefix.prompt.tensors().items()}
    return replace(prefix, prompt=prefix.prompt.replace_tensors(tensors))


@torch.no_grad()
def our_logits(lm: FrozenLM, prefix: Prefix, rows: Sequence[Sequence[int]]) -> Tensor:
    """Logits [T, V] of packed rows after one prefix."""
    return lm.logits(packed_hidden_states(lm, prepare_prefixes(lm, [prefix]), [Row(list(row)) for row in rows]))


@torch.no_grad()
def concatenated(lm: FrozenLM, prefix: Prefix, rows: Sequence[Sequence[int]]) -> Tensor:
    """The same one row at a time, by Transformers."""
    return torch.cat([plain_logits(lm, as_dtype(prefix, lm.dtype), row) for row in rows])


Step = tuple[Tensor, list[Tensor]]  # a loss and its gradients


def packed_step(lm: FrozenLM, rows: Sequence[Example], owners: Sequence[int]) -> Step:
    """Our loss of rows after every kind of prefix."""
    prefixes = mixed_prefixes(lm, grad=True)
    loss = token_losses(lm, prepare_prefixes(lm, prefixes), rows, owners).sum()
    return loss.detach(), list(torch.autograd.grad(loss, gradient_tensors(prefixes)))


def concatenated_step(lm: FrozenLM, rows: Sequence[Example], owners: Sequence[int]) -> Step:
    """The plain way's."""
    prefixes = mixed_prefixes(lm, grad=True)
    loss = plain_loss(lm, [as_dtype(prefix, lm.dtype) for prefix in prefixes], rows, owners)
    return loss.detach(), list(torch.autograd.grad(loss, gradient_tensors(prefixes)))


def step_differences(lm: FrozenLM, twin: FrozenLM) -> dict[str, Any]:
    """Loss and gradients of eight rows after six kinds of prefixes, ours and plain, against the twin's."""
    rows, owners = examples(LENGTHS), [i % 6 for i in range(len(LENGTHS))]
    wanted = concatenated_step(twin, rows, owners)
    ours = packed_step(lm, rows, owners)
    plain = wanted if twin is lm else concatenated_step(lm, rows, owners)
    return {
        "loss": judged(off(ours[0], wanted[0]), off(plain[0], wanted[0])),
        "gradient": judged(largest(ours[1], wanted[1]), largest(plain[1], wanted[1])),
    }


def off(one: Tensor, wanted: Tensor) -> float:
    """The relative difference."""
    return ((one.float() - wanted.float()).norm() / wanted.float().norm()).item()


def largest(ours: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative difference."""
    return max(off(one, other) for one, other in zip(ours, wanted, strict=True))


def judged(ours: float, plain: float) -> dict[str, Any]:
    """A difference beside the plain way's, and whether it is of its size."""
    bound = max(FLOAT32, FACTOR * plain)
    return {"ours": ours, "plain": plain, "bound": bound, "holds": ours <= bound}


def verdict(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The result of a case that is made of such comparisons."""
    broken = [name for name, part in parts.items() if not part["holds"]]
    told = ", ".join(f"{name} {part['ours']:.1e} (plain {part['plain']:.1e})" for name, part in parts.items())
    return {"holds": not broken, "broken": broken, "differences": parts, "told": told}


def compare_logits(
    lm: FrozenLM, twin: FrozenLM, ours: Callable[[FrozenLM], Tensor], plain: Callable[[FrozenLM], Tensor]
) -> dict[str, Any]:
    """Ours and the plain way on the model, against the plain way on its twin."""
    wanted = plain(twin)
    return judged(off(ours(lm), wanted), 0.0 if twin is lm else off(plain(lm), wanted))
