"""How much each token of a prefix can write into the residual stream: the norms of its values after the projection.

    ‖ W_O,h · v_j ‖       for head h and slot j

Attention α times this norm is the length of the vector that a layer really adds (Kobayashi et al. 2020, "Attention is
not only a weight", https://arxiv.org/abs/2004.10102). A token with much attention and short values adds little.

Shapes: B rows, L tokens, H query heads, K key/value heads, S prefix slots, D value size, W width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import PrefixKV, require_single
from softprompt.prefix.runtime import PrefixRuntime

_Hook = Callable[[nn.Module, tuple[object, ...]], None]
_TRIAL_IDS = 3
_HEADS_AT_ONCE = 2**22  # numbers that go through a projection at once


@torch.no_grad()
def written_norms(lm: FrozenLM, prefix_kv: PrefixKV) -> list[Tensor | None]:
    """For each layer of `geometry.layers` the norms [H, S] on the CPU.

    None for a layer without keys, and for one whose attention is changed before its projection (gated attention).

    Raises UnsupportedModelError: several prefixes, or rows that do not follow keys and values.
    """
    prefixes, projections = require_single(prefix_kv), _output_projections(lm)
    norms: list[Tensor | None] = []
    for number, kv in enumerate(prefixes.layers):
        found = projections.get(number)
        norms.append(None if kv is None or found is None else _norms(found[0], found[1], kv[1][0]).cpu())
    return norms


def _norms(projection: nn.Module, heads: int, values_KSD: Tensor) -> Tensor:
    """[H, S]: the projection of each head's value alone, without its bias."""
    values_HSD = values_KSD.repeat_interleave(heads // len(values_KSD), dim=0)
    slots, size = values_HSD.shape[1:]
    bias_W = projection(values_HSD.new_zeros(1, heads * size))[0]
    rows = max(1, _HEADS_AT_ONCE // (heads * size * slots))
    found: list[Tensor] = []
    for first in range(0, heads, rows):
        part_HSD = values_HSD[first : first + rows]
        alone_HSHD = values_HSD.new_zeros(len(part_HSD), slots, heads, size)
        for i, head_SD in enumerate(part_HSD):
            alone_HSHD[i, :, first + i] = head_SD
        found.append((projection(alone_HSHD.flatten(2)) - bias_W).float().norm(dim=-1))
    return torch.cat(found)


def _output_projections(lm: FrozenLM) -> dict[int, tuple[nn.Module, int]]:
    """By layer the module that gets the attention's result unchanged, seen in a pass, and the number of heads."""
    runtime, found = PrefixRuntime.of(lm), dict[int, tuple[nn.Module, int]]()
    results: dict[int, Tensor] = {}

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: object
    ) -> object:
        answer = runtime.switch.plain_function(module)(module, query, key, value, mask, **options)
        result_BLHD = answer[0] if isinstance(answer, tuple) else None
        number = getattr(module, "layer_idx", None)
        if isinstance(result_BLHD, Tensor) and isinstance(number, int):
            results[number] = result_BLHD
        return answer

    def watch(number: int) -> _Hook:
        def see(module: nn.Module, inputs: tuple[object, ...]) -> None:
            got, result = inputs[0] if inputs else None, results.get(number)
            if number in found or result is None or not isinstance(got, Tensor) or got.numel() != result.numel():
                return
            if torch.equal(got.flatten(), result.flatten()):
                found[number] = module, result.shape[2]

        return see

    with _hooks(lm.backbone.module, watch), runtime.use_attention(attend):
        lm.backbone.run(ids_BL=torch.arange(_TRIAL_IDS, device=lm.device)[None])
    return found


@contextlib.contextmanager
def _hooks(
    backbone: nn.Module, watch: Callable[[int], Callable[[nn.Module, tuple[object, ...]], None]]
) -> Iterator[None]:
    """In this block the parts of every attention module are watched."""
    with contextlib.ExitStack() as stack:
        for module in backbone.modules():
            number = getattr(module, "layer_idx", None)
            if isinstance(number, int):
                for part in module.children():
                    handle = part.register_forward_pre_hook(watch(number))
                    stack.callback(handle.remove)
        yield
