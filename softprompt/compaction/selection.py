"""Virtual tokens made of those tokens of long texts that rows look at most.

A KV prompt is made of keys and values, chosen for each head by itself.

A key/value head of a layer sees only its own keys, so each may keep other tokens: those that rows pay most attention to
(as Li et al.: SnapKV. 2024. https://arxiv.org/abs/2404.14469 does for one request). The keys are moved together, so
that the text ends where the virtual tokens end: rotary attention depends on distance alone, so each kept token is seen
exactly as in the whole text. (Where positions are learned, keys stay as they are.) Training then starts from what the
text says, not from how it begins.

An embedding prompt is made of real tokens, the same for all heads, and these read each other, so neighbours are kept
together. How many depends on the text (docs/log.md): several lengths of run are tried, and the first tokens.

Shapes: K key/value heads, T tokens of a text, P virtual tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.data.tokenize import Example
from softprompt.errors import ConfigError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.attention_scores import attention_mass
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import compute_keys_values, prepare_prefixes
from softprompt.prefix.rope import shift_positions, uses_rope
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.embedding_prompt import EmbeddingPrompt
from softprompt.prompts.forms import form_class
from softprompt.prompts.kv_prompt import KVPrompt

SINK = 1  # first tokens that every head keeps: attention dumps on them what belongs nowhere
RUNS = (1, 4, 8, 16)  # lengths of neighbours that an embedding prompt may be made of


@dataclass(frozen=True)
class SelectionInput:
    """A text and the rows that read it.

    Attributes:
        ids: T token ids, what opens the text with them.
        follow: token ids between text and rows.
        rows: their learned tokens ask, from the token before each.
        opening: how many of `ids` open the text and are not part of it.
    """

    ids: tuple[int, ...]
    follow: tuple[int, ...]
    rows: Sequence[Example]
    opening: int = 0


def selected_prompt(
    lm: FrozenLM,
    form: str,
    readings: Sequence[SelectionInput],
    n_tokens: int,
    between: tuple[tuple[int, ...], tuple[int, ...]],
    judges: Sequence[Example],
) -> SoftPrompt:
    """P virtual tokens for a prompt of this form, selected among the tokens of all texts.

    Args:
        between: the ids in front of an embedding prompt and behind it.
        judges: rows that choose among several embedding prompts.

    Raises as `most_attended`.
    """
    if form_class(form).begins_the_sequence:
        return select_by_attention(lm, readings, n_tokens)
    ids = tuple(token for reading in readings for token in reading.ids[reading.opening :])
    starts = [ids[:n_tokens], *select_ids_by_attention(lm, readings, n_tokens, RUNS)]
    return EmbeddingPrompt(lm.embed(torch.tensor(nearest(lm, starts, between, judges))).float())


@torch.no_grad()
def nearest(
    lm: FrozenLM,
    texts: Sequence[tuple[int, ...]],
    between: tuple[tuple[int, ...], tuple[int, ...]],
    rows: Sequence[Example],
) -> tuple[int, ...]:
    """Of these texts, as ids, the one behind which the rows lose least; `between` as in `start_from`.

    Raises DataError for a row that does not fit in the model's context behind a text.
    """
    lead, follow = between

    def loss(ids: tuple[int, ...]) -> float:
        return token_losses(lm, prepare_prefixes(lm, [Prefix(lead=(*lead, *ids), follow=follow)]), rows).mean().item()

    return min(dict.fromkeys(texts), key=loss)


@torch.no_grad()
def select_ids_by_attention(
    lm: FrozenLM, readings: Sequence[SelectionInput], n_tokens: int, runs: Sequence[int]
) -> list[tuple[int, ...]]:
    """P token ids of all texts, in their order, for each length of run: of runs of so many neighbours those that get
    most attention, all layers and heads together.

    Raises ConfigError if the texts have fewer tokens than P.
    """
    ids = [token for reading in readings for token in reading.ids[reading.opening :]]
    _check_enough(len(ids), n_tokens)
    worth = torch.cat([_worth(lm, reading) for reading in readings])
    return [tuple(ids[i] for i in _places(worth, n_tokens, min(run, n_tokens))) for run in runs]


def _places(worth_T: Tensor, n_tokens: int, run: int) -> list[int]:
    """P places in order, those of the runs that are worth most."""
    kept: dict[int, None] = {}  # in the order of their runs' worth
    for start in worth_T.unfold(0, run, 1).sum(1).argsort(descending=True, stable=True).tolist():
        own = range(start, start + run)
        if not any(i in kept for i in own):
            kept |= dict.fromkeys(own)
    single = worth_T.argsort(descending=True, stable=True).tolist()  # what no whole run has room for
    return sorted(list(kept | dict.fromkeys(single))[:n_tokens])


def _worth(lm: FrozenLM, reading: SelectionInput) -> Tensor:
    """The attention [T] that each token of the text itself gets, all layers and heads together."""
    prefix = Prefix(lead=reading.ids, follow=reading.follow)
    layers = [own.sum(0) for own in _mass(lm, prefix, reading.rows) if own is not None]
    return torch.stack(layers).sum(0)[reading.opening : len(reading.ids)]


@torch.no_grad()
def select_by_attention(lm: FrozenLM, readings: Sequence[SelectionInput], n_tokens: int) -> KVPrompt:
    """P virtual tokens out of the tokens of all texts; of several texts, only the first one's first token is a sink.

    Raises:
        ConfigError: the texts have fewer tokens than P.
        UnsupportedModelError: the keys of this model turn with their position, but not as any that is known.
    """
    _check_enough(sum(len(reading.ids) for reading in readings), n_tokens)
    parts = [_scored(lm, reading, n_tokens, first=i == 0) for i, reading in enumerate(readings)]
    layers = []
    for i in range(len(lm.geometry.layers)):
        own = [part[i] for part in parts]
        layers.append(None if own[0] is None else _kept([kv for kv in own if kv is not None], n_tokens))
    return KVPrompt(tuple(layers))


def _scored(
    lm: FrozenLM, reading: SelectionInput, n_tokens: int, *, first: bool
) -> list[tuple[Tensor, Tensor, Tensor] | None]:
    """Per layer keys, values [K, T, D] and the attention [K, T] they get; the keys as far from rows as in the text."""
    layers = compute_keys_values(lm, Prefix(lead=reading.ids, follow=reading.follow))
    whole = KVPrompt(tuple(None if kv is None else (kv[0][0], kv[1][0]) for kv in layers))
    mass = _mass(lm, Prefix(whole), reading.rows)
    own = slice(len(reading.ids))
    prompt = KVPrompt(tuple(kv and (kv[0][:, own].float(), kv[1][:, own].float()) for kv in whole.layers))
    if uses_rope(lm):
        prompt = shift_positions(lm, prompt, [n_tokens - len(reading.ids)] * len(reading.ids))
    found: list[tuple[Tensor, Tensor, Tensor] | None] = []
    for kv, of_layer in zip(prompt.layers, mass, strict=True):
        if kv is None or of_layer is None:
            found.append(None)
            continue
        worth = of_layer[:, own].clone()
        worth[:, :SINK] = torch.inf if first else -torch.inf
        found.append((kv[0], kv[1], worth))
    return found


def _mass(lm: FrozenLM, prefix: Prefix, rows: Sequence[Example]) -> list[Tensor | None]:
    """Per layer the attention [K, S] that rows behind a prefix pay to its slots."""
    asking = [[*row.mask[1:], False] for row in rows]
    return attention_mass(lm, prepare_prefixes(lm, [prefix]), [Row(row.ids) for row in rows], asking)


def _check_enough(there: int, n_tokens: int) -> None:
    if there < n_tokens:
        what, hint = "the text has fewer tokens than virtual tokens are wanted", f"--n-tokens {there} or fewer"
        raise ConfigError(what, where="method.n_tokens", expected=f"<= {there}", got=n_tokens, hint=hint)


def _kept(parts: Sequence[tuple[Tensor, Tensor, Tensor]], n_tokens: int) -> tuple[Tensor, Tensor]:
    """Keys and values [K, P, D] of the tokens that get most attention, in the order of the texts."""
    keys, values, worth = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
    best = worth.topk(n_tokens, dim=1).indices.sort(dim=1).values[..., None]
    return keys.gather(1, best.expand(-1, -1, keys.shape[2])), values.gather(1, best.expand(-1, -1, values.shape[2]))
