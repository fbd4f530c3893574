"""What rows ask in every layer and what attention gives them, kept to ask other keys and values the same.

    found = asked(lm, bank, rows, score)
    there = found[i].attend_to(keys, values)         # what layer i would give them behind another prefix

Attention to a prefix and to a row's own tokens is one softmax, so of the own tokens only what they give by themselves
and the logarithm of their weights' sum need be kept.

Shapes: T tokens of all rows, K key/value heads, R query heads that share one, D head size, S prefix slots, G bins, L
tokens per bin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.forward import attention_implementation
from softprompt.prefix.kv import CausalPrefixKV, PrefixKV, require_causal
from softprompt.prefix.packed import pack_rows, run_packed
from softprompt.prefix.packing import Row, by_tokens
from softprompt.prefix.rope import rotate_keys, uses_rope

NAME = "softprompt_queries"
NUMBERS = 2**27  # attention weights held at once: 512 MB
ROOM = 256  # own tokens that a token may look at, for the estimate of that


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """Of one layer, in float32.

    Attributes:
        asked: the scaled queries [K, R, T, D], turned as for `positions`.
        own: what attention to the own row alone gives [K, R, T, D'].
        mass: the logarithm of its weights' sum [K, R, T].
        got: what attention gave [K, R, T, D'].
        gradient: of the score, by that [K, R, T, D'].
        positions: of each token [T].
        cap: at which scores are capped, if the model does.
        window: how far a token sees, if there is a bound.
    """

    asked: Tensor
    own: Tensor
    mass: Tensor
    got: Tensor
    gradient: Tensor
    positions: Tensor
    cap: float | None = None
    window: int | None = None

    def attend_to(self, keys_KSD: Tensor, values_KSD: Tensor) -> Tensor:
        """What attention would give [K, R, T, D'] behind a prefix with these keys and values at 0…S-1."""
        scores_KRTS = _capped(self.asked @ keys_KSD[:, None].mT, self.cap)
        if self.window is not None:
            slots = torch.arange(keys_KSD.shape[1], device=keys_KSD.device)
            scores_KRTS = scores_KRTS.masked_fill(self.positions[:, None] - slots >= self.window, -torch.inf)
        total_KRT = torch.logaddexp(scores_KRTS.logsumexp(-1), self.mass)[..., None]
        return (scores_KRTS - total_KRT).exp() @ values_KSD[:, None] + (
            self.mass[..., None] - total_KRT
        ).exp() * self.own

    def of(self, tokens: Tensor) -> LayerTrace:
        """Those of some tokens."""
        return replace(self, **{name: part.index_select(axis, tokens) for name, axis, part in self._parts()})

    def moved(self, lm: FrozenLM, layer: int, by: int) -> LayerTrace:
        """Those of the same tokens `by` positions further right. Raises UnsupportedModelError as `attach.moved`."""
        asked = self.asked
        if by and uses_rope(lm):
            asked = rotate_keys(lm, layer, asked.flatten(0, 1), [by] * asked.shape[2]).view_as(asked)
        return replace(self, asked=asked, positions=self.positions + by)

    @staticmethod
    def joined(parts: Sequence[LayerTrace]) -> LayerTrace:
        """The tokens of all parts, of the same layer."""
        both = {name: torch.cat([getattr(part, name) for part in parts], axis) for name, axis, _ in parts[0]._parts()}
        return replace(parts[0], **both)

    def _parts(self) -> Iterator[tuple[str, int, Tensor]]:
        """Each tensor's name, the axis of its tokens, and itself."""
        for name in ("asked", "own", "mass", "got", "gradient"):
            yield name, 2, getattr(self, name)
        yield "positions", 0, self.positions


def record_attention(
    lm: FrozenLM, prefix_kv: PrefixKV, rows: Sequence[Row], score: Callable[[Tensor, Sequence[int]], Tensor]
) -> list[LayerTrace | None]:
    """Of each layer of `geometry.layers` the queries of all tokens of the rows, short rows first; None for a layer
    without keys.

    Args:
        bank: of one prefix.
        score: of the final hidden states [T, H] of some of the rows, whose numbers are given: a sum over the rows.

    Raises:
        DataError: an empty row, or one that does not fit in the model's context.
        UnsupportedModelError: a model whose attention cannot be listened to.
    """
    prefixes = require_causal(prefix_kv)
    assert len(prefixes.lengths) == 1, "one prefix"
    if not lm.model._can_set_attn_implementation():
        raise _deaf(lm, "an attention of its own")
    per_token = lm.config.num_attention_heads * len(lm.geometry.layers) * (prefixes.slots + ROOM)
    parts = by_tokens([len(row.ids) for row in rows], max(1, NUMBERS // per_token))
    found = [_heard(lm, prefixes, rows, part, score) for part in parts]
    layers = [[of_part[i] for of_part in found] for i in range(len(lm.geometry.layers))]
    return [LayerTrace.joined(own) if None not in own else None for own in cast("list[list[Any]]", layers)]


@dataclass(frozen=True, eq=False)
class _Call:
    """What one layer's attention was called with and gave: queries [G, K, R, L, D] and as in `Queries`."""

    asked: Tensor
    own: Tensor
    mass: Tensor
    got: Tensor
    change: Tensor  # zeros that were added to `got`
    cap: float | None


@dataclass(frozen=True)
class _Listening:
    slots: int
    calls: dict[int, _Call]


_listening: ContextVar[_Listening | None] = ContextVar("softprompt_listening", default=None)


def _heard(
    lm: FrozenLM, prefix_kv: CausalPrefixKV, rows: Sequence[Row], numbers: Sequence[int], score: Any
) -> list[LayerTrace | None]:
    """`asked` of the rows with these numbers."""
    bins, listening = pack_rows(lm, prefix_kv, [rows[i] for i in numbers]), _Listening(prefix_kv.slots, {})
    flat = bins.flat.to(lm.device)
    token = _listening.set(listening)
    try:
        with attention_implementation(lm, NAME), torch.enable_grad():
            states_TH = run_packed(lm, prefix_kv, bins).flatten(0, 1)[flat]
            calls = {i: call for i, call in listening.calls.items() if lm.geometry.layers[i] is not None}
            gradients = torch.autograd.grad(score(states_TH, numbers), [call.change for call in calls.values()])
    finally:
        _listening.reset(token)
    positions = bins.depth.flatten()[bins.flat].to(lm.device) + prefix_kv.lengths[0]

    def tokens(part_GKRLX: Tensor) -> Tensor:
        return part_GKRLX.detach().movedim(0, 2).flatten(2, 3)[:, :, flat].float()

    found: list[LayerTrace | None] = [None] * len(lm.geometry.layers)
    for (i, call), gradient in zip(calls.items(), gradients, strict=True):
        asked, own, got, change = (tokens(part) for part in (call.asked, call.own, call.got, gradient))
        mass = tokens(call.mass[..., None])[..., 0]
        found[i] = LayerTrace(asked, own, mass, got, change, positions, call.cap, lm.geometry.windows[i])
    return found


def _attention(
    module: nn.Module,
    query_GHLD: Tensor,
    key_GKCD: Tensor,
    value_GKCD: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[G, L, H, D'], as Transformers' attention functions; `attention_mask` [G, 1, L, S + L] is added to the scores."""
    if s_aux is not None:
        raise UnsupportedModelError(
            "attention with sinks of its own cannot be listened to", where=type(module).__name__
        )
    query_GKRLD = query_GHLD.unflatten(1, (key_GKCD.shape[1], -1))
    query_GKRLD = query_GKRLD * (query_GHLD.shape[-1] ** -0.5 if scaling is None else scaling)
    scores_GKRLC = _capped(query_GKRLD @ key_GKCD[:, :, None].mT, softcap).float() + attention_mask[:, :, None]
    values_GKRCD = value_GKCD[:, :, None]
    got = scores_GKRLC.softmax(-1).to(value_GKCD.dtype) @ values_GKRCD
    if (listening := _listening.get()) is not None:  # not another thread's call of the same model
        change = torch.zeros_like(got, requires_grad=True)
        got = got + change
        with torch.no_grad():
            own_GKRLL = scores_GKRLC[..., listening.slots :]
            own = own_GKRLL.softmax(-1).to(value_GKCD.dtype) @ values_GKRCD[..., listening.slots :, :]
            mass = own_GKRLL.logsumexp(-1)
        listening.calls[cast("int", module.layer_idx)] = _Call(query_GKRLD, own, mass, got, change, softcap)
    return got.flatten(1, 2).transpose(1, 2), None


def _capped(scores: Tensor, cap: float | None) -> Tensor:
    return scores if cap is None else cap * torch.tanh(scores / cap)


def _deaf(lm: FrozenLM, got: str) -> UnsupportedModelError:
    what = f"the attention of {lm.geometry.architecture} models cannot be listened to"
    return UnsupportedModelError(what, where=lm.name, expected="one that Transformers lets be set", got=got)


AttentionInterface.register(NAME, _attention)
