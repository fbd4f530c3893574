"""Prefixes and their keys and values, computed once for all rows.

Shapes: N prefixes, S key slots, K key/value heads, D head size, H width.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from softprompt.errors import GeometryError, UnsupportedModelError
from softprompt.models.backbone import NO_ID
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.cache import KV, PrefixCache
from softprompt.prefix.forward import check_fits_context, forward
from softprompt.prompts.base import SoftPrompt


@dataclass(frozen=True)
class Prefix:
    """The tokens before a row: lead ids · soft prompt (or none) · follow ids.

    No later token attends to the virtual tokens [first, last) of `masked_span`; the others keep their positions.
    """

    prompt: SoftPrompt | None = None
    lead: tuple[int, ...] = ()
    follow: tuple[int, ...] = ()
    masked_span: tuple[int, int] = (0, 0)


class PrefixKV(ABC):
    """N prefixes, ready for rows that follow them. The contents depend on the kind of model.

    Attributes:
        lengths: tokens of each prefix; its text starts at that position.
    """

    lengths: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PrefixLayout:
    """Slots, positions and surrounding text of N prefixes, without their prompts' numbers, on the model's device.

    Attributes:
        positions: [N, S] position of each slot, -1 for an empty one.
        starts: [N] tokens of each prefix; its text starts at that position.
        lengths: the same, on the host.
        past_slots: number of the leading slots, which hold KV prompts; the tokens of the others are run.
        around: for each prefix the embeddings [n, H] of its lead and of its follow.
        run_ids: [N, R] ids of the tokens that are run, `NO_ID` for virtual tokens and empty slots.
    """

    positions: Tensor
    starts: Tensor
    lengths: tuple[int, ...]
    past_slots: int
    around: tuple[tuple[Tensor, Tensor], ...]
    run_ids: Tensor

    @property
    def slots(self) -> int:
        """S."""
        return self.positions.shape[1]


@final
@dataclass(frozen=True, eq=False)
class CausalPrefixKV(PrefixKV):
    """The keys and values of N prefixes of a causal model.

    Attributes:
        layers: per layer (keys [N, K, S, D], values [N, K, S, D']) or None, each on its layer's device.
        layout: slots and positions.
        lengths: tokens of each prefix; its text starts at that position.
    """

    layers: tuple[KV, ...]
    layout: PrefixLayout
    lengths: tuple[int, ...]

    @property
    def positions(self) -> Tensor:
        """[N, S] position of each slot, -1 for an empty one."""
        return self.layout.positions

    @property
    def slots(self) -> int:
        """S."""
        return self.layout.slots

    def past(self, prefix_ids: Tensor) -> tuple[KV, ...]:
        """Per layer the keys and values [G, K, S, D] of the prefixes `prefix_ids` [G], shared if there is only one."""
        if len(self.lengths) == 1:
            size = (len(prefix_ids), -1, -1, -1)
            return tuple(None if kv is None else (kv[0].expand(size), kv[1].expand(size)) for kv in self.layers)
        there = [None if kv is None else (kv, prefix_ids.to(kv[0].device)) for kv in self.layers]
        return tuple(None if pair is None else (pair[0][0][pair[1]], pair[0][1][pair[1]]) for pair in there)


def lay_out_prefixes(lm: FrozenLM, prefixes: Sequence[Prefix]) -> PrefixLayout:
    """Slots and positions of these prefixes: KV prompts come first, as the past; everything else is run after them,
    padded to the right.

    Raises:
        DataError: a prefix alone is longer than the model's context.
        GeometryError: a KV prompt after a lead.
    """
    past_lengths = [p.prompt.n_tokens if p.prompt and p.prompt.begins_the_sequence else 0 for p in prefixes]
    run_lengths = [_run_length(prefix) for prefix in prefixes]
    longest = max(past + run for past, run in zip(past_lengths, run_lengths, strict=True))
    hint = "fewer virtual tokens (--n-tokens), fewer examples (--shots), or a shorter text in front"
    check_fits_context(lm, longest, "what comes before the row does not fit in the model's context", hint)
    past_slots, run_slots = max(past_lengths), max(run_lengths)
    past_N1, run_N1 = torch.tensor(past_lengths)[:, None], torch.tensor(run_lengths)[:, None]
    past_S, run_S = torch.arange(past_slots), torch.arange(run_slots)
    past_positions, run_positions = (
        past_S.where(past_S < past_N1, -1),
        (run_S + past_N1).where(run_S < run_N1, -1),
    )
    positions = torch.cat([past_positions, run_positions], dim=1)
    for i, prefix in enumerate(prefixes):
        begin = 0 if prefix.prompt and prefix.prompt.begins_the_sequence else past_slots + len(prefix.lead)
        positions[i, begin + prefix.masked_span[0] : begin + prefix.masked_span[1]] = -1
    starts_N = (past_N1 + run_N1)[:, 0]
    around = tuple((lm.embed(_ids(prefix.lead)), lm.embed(_ids(prefix.follow))) for prefix in prefixes)
    ids = [embedded_ids(lm, prefix) for prefix in prefixes]
    return PrefixLayout(
        positions.to(lm.device),
        starts_N.to(lm.device),
        tuple(starts_N.tolist()),
        past_slots,
        around,
        torch.stack([pad(run, (0, run_slots - len(run)), value=NO_ID) for run in ids]),
    )


def run_prefixes(lm: FrozenLM, prefixes: Sequence[Prefix], layout: PrefixLayout | None = None) -> CausalPrefixKV:
    """Keys and values of every prefix in one pass, with gradient where a prompt has one.

    Args:
        layout: that of `lay_out_prefixes`, if it is known already. With it nothing is copied from the host.

    Raises as `lay_out_prefixes`.
    """
    layout = layout or lay_out_prefixes(lm, prefixes)
    positions, past_slots = layout.positions, layout.past_slots
    run_slots = layout.slots - past_slots
    layers = _stack(lm, prefixes, past_slots)
    if run_slots:
        queries = positions[:, past_slots:]
        cache = PrefixCache(layers, past_slots, record=True)
        runs = [_joined(lm, prefix, *texts) for prefix, texts in zip(prefixes, layout.around, strict=True)]
        states = forward(
            lm,
            embeds_GLH=torch.stack([pad(run, (0, 0, 0, run_slots - len(run))) for run in runs]),
            embedded_ids_GL=layout.run_ids,
            positions_GL=queries.clamp_min(0),
            key_positions_GK=positions,
            visible_GQK=(positions >= 0)[:, None, :] & (positions[:, None, :] <= queries[:, :, None]),
            cache=cache,
        )
        seen = [cache.seen.get(i) for i in range(len(layers))]
        layers = tuple(kv and (lm.tied(kv[0], states), lm.tied(kv[1], states)) for kv in seen)
    return CausalPrefixKV(layers, layout, layout.lengths)


def require_causal(prefix_kv: PrefixKV) -> CausalPrefixKV:
    """The prefixes of a causal model; UnsupportedModelError for those of an encoder–decoder."""
    if isinstance(prefix_kv, CausalPrefixKV):
        return prefix_kv
    raise UnsupportedModelError(
        "this needs a causal model whose rows follow keys and values",
        got="an encoder-decoder, or a model with states or masks of its own",
    )


def require_single(prefix_kv: PrefixKV) -> CausalPrefixKV:
    """The one prefix of a causal model; UnsupportedModelError for an encoder–decoder's, and for several."""
    prefixes = require_causal(prefix_kv)
    if len(prefixes.lengths) != 1:
        raise UnsupportedModelError("this works with one prefix at a time", got=f"{len(prefixes.lengths)} prefixes")
    return prefixes


def embedded(lm: FrozenLM, prefix: Prefix) -> Tensor:
    """Embeddings [n, H] of the tokens of this prefix that must be run: all but those of a KV prompt.

    Raises GeometryError for a KV prompt after a lead.
    """
    _run_length(prefix)
    return _joined(lm, prefix, lm.embed(_ids(prefix.lead)), lm.embed(_ids(prefix.follow)))


def embedded_ids(lm: FrozenLM, prefix: Prefix) -> Tensor:
    """The ids [n] of the tokens of `embedded`, `NO_ID` for virtual tokens."""
    virtual = prefix.prompt.n_tokens if prefix.prompt and not prefix.prompt.begins_the_sequence else 0
    return _ids([*prefix.lead, *[NO_ID] * virtual, *prefix.follow]).to(lm.device)


def _run_length(prefix: Prefix) -> int:
    """Number of tokens that `embedded` returns."""
    prompt = prefix.prompt
    at_start = prompt is not None and prompt.begins_the_sequence
    if at_start and prefix.lead:
        raise GeometryError(
            "a KV prompt starts at position 0, so no lead can stand before it",
            hint="make the lead part of the prompt: initialize it from a text that begins with the lead",
        )
    virtual = prompt.n_tokens if prompt is not None and not at_start else 0
    return len(prefix.lead) + virtual + len(prefix.follow)


def _joined(lm: FrozenLM, prefix: Prefix, lead: Tensor, follow: Tensor) -> Tensor:
    embeddings = prefix.prompt.input_embeddings() if prefix.prompt else None
    if embeddings is None:
        return torch.cat([lead, follow])
    return torch.cat([lead, embeddings.to(lm.device, lm.dtype), follow])


def _ids(ids: Sequence[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.long)


def _stack(lm: FrozenLM, prefixes: Sequence[Prefix], slots: int) -> tuple[KV, ...]:
    """Per layer the keys and values of all KV prompts, padded to `slots`; empty for the other prefixes."""
    stacked: list[KV] = []
    pasts = [prefix.prompt.keys_values() if prefix.prompt and slots else None for prefix in prefixes]
    for i, shape in enumerate(lm.geometry.layers):
        if shape is None or slots == 0:
            stacked.append(None)
            continue
        keys, values = [], []
        device = lm.layer_devices[i]
        for past in pasts:
            kv = past[i] if past is not None else None
            if kv is None:
                kv = (
                    torch.zeros(shape.kv_heads, 0, shape.key_dim, device=device),
                    torch.zeros(shape.kv_heads, 0, shape.value_dim, device=device),
                )
            missing = (0, 0, 0, slots - kv[0].shape[1])
            keys.append(pad(kv[0].to(device, lm.dtype), missing))
            values.append(pad(kv[1].to(device, lm.dtype), missing))
        stacked.append((torch.stack(keys), torch.stack(values)))
    return tuple(stacked)
