"""Records each layer's queries and attention outputs, to evaluate other keys and values against them.

    traces = record_attention(lm, prefix_kv, rows, score)
    output = traces[i].attend_to(keys, values)         # the attention output of layer i after another prefix

Attention to a prefix and to a row's own tokens is one softmax. So of the own tokens only their attention output and the
logarithm of their weights' sum are kept.

Shapes: T tokens of all rows, K key/value heads, R query heads that share one, D head size, S prefix slots, G bins, L
tokens per bin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from softprompt.errors import FOREIGN_ERRORS, UnsupportedModelError, first_line, is_out_of_memory
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import CausalPrefixKV, PrefixKV, require_single
from softprompt.prefix.packed import pack_rows, run_packed
from softprompt.prefix.packing import Row, by_tokens
from softprompt.prefix.rope import rotate_keys, uses_rope
from softprompt.prefix.runtime import PrefixRuntime

_WEIGHTS = 2**27  # attention weights held at once: 512 MB
_OWN_TOKENS = 256  # estimate of the own tokens that a token attends to


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """Queries and attention outputs of one layer, in float32.

    Attributes:
        queries: scaled [K, R, T, D], rotated for `positions`.
        own: attention output over the own row alone [K, R, T, D'].
        mass: the logarithm of its weights' sum [K, R, T].
        output: attention output [K, R, T, D'].
        gradient: of the score with respect to `output` [K, R, T, D'].
        positions: of each token [T].
        cap: soft cap of the attention scores, if the model has one.
        window: the layer's sliding window in tokens, if it has one.
    """

    queries: Tensor
    own: Tensor
    mass: Tensor
    output: Tensor
    gradient: Tensor
    positions: Tensor
    cap: float | None = None
    window: int | None = None

    def attend_to(self, keys_KSD: Tensor, values_KSD: Tensor) -> Tensor:
        """The attention output [K, R, T, D'] after a prefix with these keys and values at positions 0…S-1."""
        scores_KRTS, total_KRT = self._scores(keys_KSD)
        weights_KRTS = (scores_KRTS - total_KRT[..., None]).exp()
        return weights_KRTS @ values_KSD[:, None] + (self.mass - total_KRT).exp()[..., None] * self.own

    def peaks(self, keys_KSD: Tensor) -> Tensor:
        """The largest attention weight [K, S] that any token and head gives each key at positions 0…S-1."""
        peaks_KS = torch.zeros(keys_KSD.shape[:2], device=keys_KSD.device)
        per_token = self.queries.shape[0] * self.queries.shape[1] * keys_KSD.shape[1]
        for part in torch.arange(len(self.positions), device=keys_KSD.device).split(max(1, _WEIGHTS // per_token)):
            scores_KRTS, total_KRT = self.of(part)._scores(keys_KSD)
            peaks_KS = torch.maximum(peaks_KS, (scores_KRTS - total_KRT[..., None]).exp().amax((1, 2)))
        return peaks_KS

    def _scores(self, keys_KSD: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the weights [K, R, T, S] of a prefix's keys, and of the sum [K, R, T] with the own tokens'."""
        scores_KRTS = _capped(self.queries @ keys_KSD[:, None].mT, self.cap)
        if self.window is not None:
            slots = torch.arange(keys_KSD.shape[1], device=keys_KSD.device)
            scores_KRTS = scores_KRTS.masked_fill(self.positions[:, None] - slots >= self.window, -torch.inf)
        return scores_KRTS, torch.logaddexp(scores_KRTS.logsumexp(-1), self.mass)

    def of(self, tokens: Tensor) -> LayerTrace:
        """The trace of some of the tokens."""
        return replace(self, **{name: part.index_select(axis, tokens) for name, axis, part in self._parts()})

    def moved(self, lm: FrozenLM, layer: int, by: int) -> LayerTrace:
        """The trace of the same tokens `by` positions further right.

        Raises UnsupportedModelError as `rope.shift_positions`.
        """
        queries = self.queries
        if by and uses_rope(lm):
            queries = rotate_keys(lm, layer, queries.flatten(0, 1), [by] * queries.shape[2]).view_as(queries)
        return replace(self, queries=queries, positions=self.positions + by)

    @staticmethod
    def joined(parts: Sequence[LayerTrace]) -> LayerTrace:
        """One trace of the tokens of all parts, which are of the same layer."""
        both = {name: torch.cat([getattr(part, name) for part in parts], axis) for name, axis, _ in parts[0]._parts()}
        return replace(parts[0], **both)

    def _parts(self) -> Iterator[tuple[str, int, Tensor]]:
        """Each tensor's name, the axis of its tokens, and itself."""
        for name in ("queries", "own", "mass", "output", "gradient"):
            yield name, 2, getattr(self, name)
        yield "positions", 0, self.positions


def record_attention(
    lm: FrozenLM, prefix_kv: PrefixKV, rows: Sequence[Row], score: Callable[[Tensor, Sequence[int]], Tensor]
) -> list[LayerTrace | None]:
    """For each layer of `geometry.layers` the trace of all tokens, short rows first; None for a layer without keys.

    Args:
        prefix_kv: of one prefix.
        score: called with final hidden states [T, H] of some of the rows and the numbers of these rows; returns a sum
            over the rows.

    Raises:
        DataError: an empty row, or one that does not fit in the model's context.
        UnsupportedModelError: a model whose attention cannot be recorded, or several prefixes.
    """
    prefixes = require_single(prefix_kv)
    if not PrefixRuntime.of(lm).can_switch_attention:
        raise _not_recordable(lm, "an attention of its own")
    per_token = lm.geometry.n_heads * len(lm.geometry.layers) * (prefixes.slots + _OWN_TOKENS)
    groups = by_tokens([len(row.ids) for row in rows], max(1, _WEIGHTS // per_token))
    try:
        traces = [_record(lm, prefixes, rows, group, score) for group in groups]
    except FOREIGN_ERRORS as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise _not_recordable(lm, f"{type(error).__name__}: {first_line(error)}") from error
    layers = [[of_group[i] for of_group in traces] for i in range(len(lm.geometry.layers))]
    return [_joined(parts) for parts in layers]


def _joined(parts: Sequence[LayerTrace | None]) -> LayerTrace | None:
    """The trace of all parts; None if the layer has none."""
    traces = [part for part in parts if part is not None]
    return LayerTrace.joined(traces) if len(traces) == len(parts) else None


@dataclass(frozen=True, eq=False)
class _Call:
    """Inputs and outputs of one call of a layer's attention: queries [G, K, R, L, D], others as in `LayerTrace`."""

    queries: Tensor
    own: Tensor
    mass: Tensor
    output: Tensor
    change: Tensor  # zeros added to `output`, for its gradient
    cap: float | None


def _record(
    lm: FrozenLM,
    prefix_kv: CausalPrefixKV,
    rows: Sequence[Row],
    numbers: Sequence[int],
    score: Callable[[Tensor, Sequence[int]], Tensor],
) -> list[LayerTrace | None]:
    """`record_attention` for the rows with these numbers."""
    bins = pack_rows(lm, prefix_kv, [rows[i] for i in numbers])
    recorder = _Recorder(prefix_kv.slots)
    flat = bins.flat.to(lm.device)
    with PrefixRuntime.of(lm).use_attention(recorder.attend), torch.enable_grad():
        states_TH = run_packed(lm, prefix_kv, bins).flatten(0, 1)[flat]
        calls = {i: call for i, call in recorder.calls.items() if lm.geometry.layers[i] is not None}
        if not calls:
            raise _not_recordable(lm, "an attention of its own")
        gradients = torch.autograd.grad(score(states_TH, numbers), [call.change for call in calls.values()])
    positions = bins.depth.flatten()[bins.flat].to(lm.device) + prefix_kv.lengths[0]

    def tokens(part_GKRLX: Tensor) -> Tensor:
        return part_GKRLX.detach().movedim(0, 2).flatten(2, 3)[:, :, flat.to(part_GKRLX.device)].float().to(lm.device)

    traces: list[LayerTrace | None] = [None] * len(lm.geometry.layers)
    for (i, call), gradient in zip(calls.items(), gradients, strict=True):
        traces[i] = LayerTrace(
            queries=tokens(call.queries),
            own=tokens(call.own),
            mass=tokens(call.mass[..., None])[..., 0],
            output=tokens(call.output),
            gradient=tokens(gradient),
            positions=positions,
            cap=call.cap,
            window=lm.geometry.windows[i],
        )
    return traces


class _Recorder:
    """An attention function that records its calls, by layer.

    Args:
        slots: S.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.calls: dict[int, _Call] = {}

    def attend(
        self,
        module: nn.Module,
        query_GHLD: Tensor,
        key_GKCD: Tensor,
        value_GKCD: Tensor,
        attention_mask: Tensor,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **options: object,
    ) -> tuple[Tensor, None]:
        """[G, L, H, D'], as Transformers' attention functions; `attention_mask` [G, 1, L, S + L] is added to scores."""
        if s_aux is not None:
            raise UnsupportedModelError("attention with learned sinks cannot be recorded", where=type(module).__name__)
        if attention_mask.shape[1] != 1:
            raise UnsupportedModelError("attention with a mask for each head cannot be recorded")
        query_GKRLD = query_GHLD.unflatten(1, (key_GKCD.shape[1], -1))
        query_GKRLD = query_GKRLD * (query_GHLD.shape[-1] ** -0.5 if scaling is None else scaling)
        scores_GKRLC = _capped(query_GKRLD @ key_GKCD[:, :, None].mT, softcap).float() + attention_mask[:, :, None]
        values_GKRCD = value_GKCD[:, :, None]
        output = scores_GKRLC.softmax(-1).to(value_GKCD.dtype) @ values_GKRCD
        change = torch.zeros_like(output, requires_grad=True)
        output = output + change
        with torch.no_grad():
            own_GKRLL = scores_GKRLC[..., self.slots :]
            own = own_GKRLL.softmax(-1).to(value_GKCD.dtype) @ values_GKRCD[..., self.slots :, :]
            mass = own_GKRLL.logsumexp(-1)
        self.calls[cast("int", module.layer_idx)] = _Call(query_GKRLD, own, mass, output, change, softcap)
        return output.flatten(1, 2).transpose(1, 2).contiguous(), None


def _capped(scores: Tensor, cap: float | None) -> Tensor:
    return scores if cap is None else cap * torch.tanh(scores / cap)


def _not_recordable(lm: FrozenLM, got: str) -> UnsupportedModelError:
    what = f"the attention of {lm.geometry.architecture} models cannot be recorded"
    return UnsupportedModelError(what, where=lm.name, expected="one that Transformers lets be set", got=got)
