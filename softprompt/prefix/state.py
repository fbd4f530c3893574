"""Prefixes as states: each prefix is run once in the model's own cache, and rows start from copies of that state.

It is the path of models whose layers carry more than keys and values (Mamba, Qwen3.5, Granite 4), or whose masks depend
on places in the cache (Llama 4, BLOOM): the model's own rules apply throughout. A model whose cache cannot do this gets
the prefix's embeddings before each row, as plain concatenation. `verify` finds which of the two is exact.

Rows are padded on the right, where no token of theirs attends to the padding.

Shapes: B rows, L tokens, T tokens of all rows, n tokens of a prefix, H width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.forward import check_fits_context, check_not_empty
from softprompt.prefix.kv import Prefix, PrefixKV, embedded, embedded_ids
from softprompt.prefix.model_cache import fill_cache, for_rows, layer_state, mapped, new_cache
from softprompt.prefix.packing import Row, by_tokens
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prompts.base import LayerKV, LayerState
from softprompt.prompts.state_prompt import StatePrompt

BATCH_TOKENS = 2**14  # tokens of rows in one forward pass without gradient


@dataclass(frozen=True, eq=False)
class _PrefixText:
    """The embedded tokens of one prefix.

    Attributes:
        embeds: [n, H], with gradient where the soft prompt has one.
        ids: [n] token ids, `NO_ID` for virtual tokens.
    """

    embeds: Tensor
    ids: Tensor


@final
@dataclass(frozen=True, eq=False)
class StatePrefixes(PrefixKV):
    """N prefixes of a causal model.

    Attributes:
        texts: their embedded tokens.
        states: the model's cache after each, None for one without tokens; empty for plain concatenation.
        lengths: tokens of each prefix; its text starts at that position.
    """

    texts: tuple[_PrefixText, ...]
    states: tuple[Cache | None, ...]
    lengths: tuple[int, ...]


def run_states(lm: FrozenLM, prefixes: Sequence[Prefix]) -> StatePrefixes:
    """Run each prefix in a cache of the model's own, or embed it for concatenation, with gradient.

    Raises:
        DataError: a prefix alone is longer than the model's context.
        UnsupportedModelError: a soft prompt of keys and values for a model that carries more than these, or virtual
            tokens that later tokens may not attend to.
    """
    runtime = PrefixRuntime.of(lm)
    texts, states = list[_PrefixText](), list[Cache | None]()
    lengths = list[int]()
    for prefix in prefixes:
        carried = prefix.prompt.states() if prefix.prompt else None
        if carried is not None:
            _check_taken(lm, carried)
        if prefix.masked_span[0] != prefix.masked_span[1]:
            raise UnsupportedModelError(
                "virtual tokens cannot be hidden from later tokens of this model",
                where=lm.name,
                hint="start from a text (--init text), so that no row is in the prompt; leave train.token_dropout at 0",
            )
        text = _PrefixText(embedded(lm, prefix), embedded_ids(lm, prefix))
        past = prefix.prompt.n_tokens if prefix.prompt is not None and carried is not None else 0
        texts.append(text)
        lengths.append(past + len(text.embeds))
        if runtime.path == "state" and not (lm.checkpoints_layers and carried is None):
            states.append(_run(lm, text, carried))
    hint = "fewer virtual tokens (--n-tokens), fewer examples (--shots), or a shorter text in front"
    check_fits_context(lm, max(lengths), "what comes before the row does not fit in the model's context", hint)
    return StatePrefixes(tuple(texts), tuple(states), tuple(lengths))


def state_hidden_states(lm: FrozenLM, prefixes: StatePrefixes, rows: Sequence[Row]) -> Tensor:
    """Final hidden states [T, H] of all tokens of all rows, in the order of the rows.

    A row that is a tree is run as one row for each of its leaves.

    Raises DataError for an empty row, or one that does not fit in the model's context after its prefix.
    """
    check_not_empty(row.ids for row in rows)
    chains = [chain for number, row in enumerate(rows) for chain in _chains(number, row)]
    check_fits_context(lm, max(prefixes.lengths[chain.prefix] + len(chain.ids) for chain in chains))
    offsets = [0]
    for row in rows:
        offsets.append(offsets[-1] + len(row.ids))
    parts, places = list[Tensor](), list[int]()
    for group in _groups(lm, chains):
        states_BLH = run_group(lm, prefixes, [chain.ids for chain in group], group[0].prefix)
        for states_LH, chain in zip(states_BLH, group, strict=True):
            parts.append(states_LH[: len(chain.ids)][list(chain.fresh)])
            places += [offsets[chain.row] + chain.tokens[i] for i in chain.fresh]
    order = torch.tensor(places).argsort()
    return torch.cat(parts)[order.to(lm.device)]


@torch.no_grad()
def compute_states(lm: FrozenLM, prefix: Prefix) -> StatePrompt:
    """Everything that a prefix leaves in the model's cache, as a soft prompt that acts as the prefix does.

    Raises UnsupportedModelError for a model whose layers carry keys and values only, or more than its cache holds.
    """
    if not PrefixRuntime.of(lm).takes_states:
        raise _no_states(lm)
    (state,) = run_states(lm, [prefix]).states
    return cached_states(lm, state)


def cached_states(lm: FrozenLM, cache: Cache | None) -> StatePrompt:
    """What a cache of one row holds, without its row axis."""
    held = [layer_state(layer) for layer in cache.layers] if cache is not None else []
    layers = [{name: part.to(lm.device) for name, part in layer.items()} for layer in held]
    layers += [dict[str, Tensor]()] * (len(lm.geometry.layers) - len(layers))
    return StatePrompt(tuple({name: tensor[0] for name, tensor in layer.items()} for layer in layers))


@torch.no_grad()
def state_keys_values(lm: FrozenLM, prefix: Prefix) -> tuple[LayerKV | None, ...]:
    """The keys and values [1, K, S, D] that a prefix leaves in the model's cache, by layer.

    Raises UnsupportedModelError for a model that carries more than these, or whose cache is not used.
    """
    if not PrefixRuntime.of(lm).takes_kv:
        raise _no_kv(lm)
    (state,) = run_states(lm, [prefix]).states
    layers = cached_states(lm, state).layers
    return tuple((layer["keys"][None], layer["values"][None]) if "keys" in layer else None for layer in layers)


def run_group(
    lm: FrozenLM, prefixes: StatePrefixes, rows: Sequence[Sequence[int]], prefix: int, cache: Cache | None = None
) -> Tensor:
    """Final hidden states [B, L, H] of rows after one prefix, padded to the longest.

    Args:
        cache: takes up the prefix, if it is concatenated, and the rows, which must be of equal length; None if it is
            not needed afterwards.
    """
    longest = max(map(len, rows))
    ids_BL = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids_BL[i, : len(row)] = torch.as_tensor(row)
    ids_BL = ids_BL.to(lm.device)
    text = prefixes.texts[prefix]
    if prefixes.states or not len(text.embeds):
        if cache is None and prefixes.states and (state := prefixes.states[prefix]) is not None:
            cache = for_rows(state, len(rows))
            ids_BL = pad(ids_BL, (0, max(0, 2 - longest)))  # of a single token models overwrite states in place
        return lm.backbone.run(ids_BL=ids_BL, cache=cache)[:, :longest]
    count = len(rows)
    embeds_BLH = torch.cat([text.embeds.expand(count, -1, -1), lm.embed(ids_BL)], dim=1)
    whole_BL = torch.cat([text.ids.expand(count, -1), ids_BL], dim=1)
    return lm.backbone.run(embeds_BLH=embeds_BLH, embedded_ids_BL=whole_BL, cache=cache)[:, len(text.embeds) :]


@dataclass(frozen=True)
class _Chain:
    """Tokens one after another: a row, or the path to a leaf of a row that is a tree.

    Attributes:
        tokens: the place of each token in its row.
        fresh: indices in `tokens` of those that no earlier chain of the row has.
    """

    ids: tuple[int, ...]
    prefix: int
    row: int
    tokens: tuple[int, ...]
    fresh: tuple[int, ...]


def _chains(number: int, row: Row) -> Iterator[_Chain]:
    if row.parents is None:
        places = tuple(range(len(row.ids)))
        yield _Chain(tuple(row.ids), row.prefix, number, places, places)
        return
    seen = set[int]()
    for leaf in sorted(set(range(len(row.ids))) - set(row.parents)):
        path, token = list[int](), leaf
        while token >= 0:
            path.append(token)
            token = row.parents[token]
        tokens = tuple(reversed(path))
        fresh = tuple(i for i, token in enumerate(tokens) if token not in seen)
        seen.update(tokens)
        yield _Chain(tuple(row.ids[token] for token in tokens), row.prefix, number, tokens, fresh)


def _groups(lm: FrozenLM, chains: Sequence[_Chain]) -> Iterator[list[_Chain]]:
    """Chains that can run together: of one prefix, and of one length where padding is not exact."""
    pads = PrefixRuntime.of(lm).pads
    together: dict[tuple[int, int], list[_Chain]] = {}
    for chain in chains:
        together.setdefault((chain.prefix, 0 if pads else len(chain.ids)), []).append(chain)
    limit = sum(len(chain.ids) for chain in chains) if torch.is_grad_enabled() else BATCH_TOKENS
    for members in together.values():
        for group in by_tokens([len(chain.ids) for chain in members], limit):
            yield [members[i] for i in group]


def _run(lm: FrozenLM, text: _PrefixText, carried: Sequence[LayerState] | None) -> Cache | None:
    """The model's cache after a prefix; None for one without tokens."""
    if carried is None and not len(text.embeds):
        return None
    cache = new_cache(lm.backbone)
    if carried is not None:
        placed = zip(carried, lm.layer_devices, strict=True)
        fill_cache(cache, [{name: _like(lm, name, part, device) for name, part in h.items()} for h, device in placed])
    if len(text.embeds):
        states = lm.backbone.run(embeds_BLH=text.embeds[None], embedded_ids_BL=text.ids[None], cache=cache)
        if lm.is_sharded:
            cache = mapped(cache, lambda tensor: lm.tied(tensor, states))
    return cache


def _like(lm: FrozenLM, name: str, tensor: Tensor, device: torch.device) -> Tensor:
    """On its layer's device and in the model's dtype; models keep recurrent states in a higher one."""
    return tensor.to(device) if name.startswith("recurrent") else tensor.to(device, lm.dtype)


def _check_taken(lm: FrozenLM, carried: Sequence[LayerState]) -> None:
    """Raise UnsupportedModelError unless the model is exact after a soft prompt of these tensors."""
    runtime = PrefixRuntime.of(lm)
    with_states = any(layer.keys() - {"keys", "values"} for layer in carried)
    if with_states and not runtime.takes_states:
        raise _no_states(lm)
    if not with_states and not runtime.takes_kv:
        raise _no_kv(lm)


def _no_states(lm: FrozenLM) -> UnsupportedModelError:
    what = f"{lm.geometry.architecture} models cannot start from given states"
    got = "a model whose layers carry keys and values only" if not lm.geometry.states else None
    if lm.geometry.states and PrefixRuntime.of(lm).path == "concatenated":
        got = "Transformers' scan of several tokens, which starts from zero states in this model"
    hint = "--method prompt-tuning" if lm.geometry.states else "--method prefix-tuning"
    return UnsupportedModelError(what, where=lm.name, got=got, hint=hint)


def _no_kv(lm: FrozenLM) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{lm.geometry.architecture} models carry more from a prefix than keys and values",
        where=lm.name,
        expected="an embedding prompt" + (", or states" if PrefixRuntime.of(lm).takes_states else ""),
        hint="--method prompt-tuning" + (" or state-tuning" if PrefixRuntime.of(lm).takes_states else ""),
    )
