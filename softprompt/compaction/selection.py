"""Builds virtual tokens from the tokens of long texts that receive the most attention.

For a KV prompt every key/value head of a layer selects its own tokens, those that the rows attend to most (as Li et
al.: SnapKV. 2024. https://arxiv.org/abs/2404.14469 does for one request). The selected keys are moved so that the text
ends where the virtual tokens end: rotary attention depends on distance alone, so each selected token is attended to
exactly as in the full text. (With learned positions keys are not moved.) Training then starts from the content of the
whole text, not only from its beginning.

For an embedding prompt all heads share the same tokens, and these attend to each other, so runs of neighbors are
selected. The best length of run depends on the text (docs/log): several are compared, and the first P tokens.

Shapes: K key/value heads, T tokens of a text, P virtual tokens, D head size, S key slots of a prefix.
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
from softprompt.prefix.attention_trace import LayerTrace
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import compute_keys_values, prepare_prefixes
from softprompt.prefix.rope import shift_positions, uses_rope
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.embedding_prompt import EmbeddingPrompt
from softprompt.prompts.forms import form_class
from softprompt.prompts.kv_prompt import KVPrompt

RUN_LENGTHS = (1, 4, 8, 16)  # neighbors selected together for an embedding prompt; all are compared
_SINK_TOKENS = 1  # first tokens that every head keeps: the attention sink


@dataclass(frozen=True)
class SelectionInput:
    """A text, and the rows whose attention to it decides which tokens are selected.

    Attributes:
        ids: T token ids, including the text's opening.
        follow: token ids between text and rows.
        rows: the attention of the tokens that predict their learned tokens is counted.
        opening: number of first `ids` that open the text (BOS, system turn) and are not part of it.
    """

    ids: tuple[int, ...]
    follow: tuple[int, ...]
    rows: Sequence[Example]
    opening: int = 0


def selected_prompt(
    lm: FrozenLM,
    form: str,
    inputs: Sequence[SelectionInput],
    n_tokens: int,
    between: tuple[tuple[int, ...], tuple[int, ...]],
    validation: Sequence[Example],
) -> SoftPrompt:
    """P virtual tokens for a prompt of this form, selected among the tokens of all texts.

    Args:
        between: the ids before and after an embedding prompt.
        validation: rows whose loss chooses among several embedding prompts.

    Raises as `select_by_attention`.
    """
    if form_class(form).begins_the_sequence:
        return select_by_attention(lm, inputs, n_tokens)
    ids = tuple(token for text in inputs for token in text.ids[text.opening :])
    candidates = [ids[:n_tokens], *select_ids_by_attention(lm, inputs, n_tokens, RUN_LENGTHS)]
    return EmbeddingPrompt(lm.embed(torch.tensor(lowest_loss(lm, candidates, between, validation))).float())


@torch.no_grad()
def lowest_loss(
    lm: FrozenLM,
    candidates: Sequence[tuple[int, ...]],
    between: tuple[tuple[int, ...], tuple[int, ...]],
    rows: Sequence[Example],
) -> tuple[int, ...]:
    """The candidate, given as token ids, after which the rows have the lowest loss; `between` as in `selected_prompt`.

    Raises DataError for a row that does not fit in the model's context after a candidate.
    """
    lead, follow = between

    def loss(ids: tuple[int, ...]) -> float:
        return token_losses(lm, prepare_prefixes(lm, [Prefix(lead=(*lead, *ids), follow=follow)]), rows).mean().item()

    return min(dict.fromkeys(candidates), key=loss)


@torch.no_grad()
def select_ids_by_attention(
    lm: FrozenLM, inputs: Sequence[SelectionInput], n_tokens: int, run_lengths: Sequence[int]
) -> list[tuple[int, ...]]:
    """For each run length P token ids in text order, from the runs with the most attention summed over all heads.

    Raises ConfigError if the texts have fewer tokens than P.
    """
    ids = [token for text in inputs for token in text.ids[text.opening :]]
    _check_enough(len(ids), n_tokens)
    attention = torch.cat([_attention_to_text(lm, text) for text in inputs])
    return [tuple(ids[i] for i in _best_runs(attention, n_tokens, min(run, n_tokens))) for run in run_lengths]


def _best_runs(attention_T: Tensor, n_tokens: int, run: int) -> list[int]:
    """P indices in order, from the runs with the most attention that do not overlap."""
    selected: dict[int, None] = {}  # an ordered set, the best run first
    for start in attention_T.unfold(0, run, 1).sum(1).argsort(descending=True, stable=True).tolist():
        indices = range(start, start + run)
        if not any(i in selected for i in indices):
            selected |= dict.fromkeys(indices)
    single = attention_T.argsort(descending=True, stable=True).tolist()  # fills gaps that are shorter than a run
    return sorted(list(selected | dict.fromkeys(single))[:n_tokens])


def _attention_to_text(lm: FrozenLM, text: SelectionInput) -> Tensor:
    """The attention [T] that each token of the text itself receives, summed over layers and heads."""
    prefix = Prefix(lead=text.ids, follow=text.follow)
    layers = [attention.sum(0) for attention in _attention_to_prefix(lm, prefix, text.rows) if attention is not None]
    return torch.stack(layers).sum(0)[text.opening : len(text.ids)]


@torch.no_grad()
def select_by_attention(
    lm: FrozenLM,
    inputs: Sequence[SelectionInput],
    n_tokens: int,
    traces: Sequence[Sequence[LayerTrace | None]] | None = None,
) -> KVPrompt:
    """P virtual tokens, selected for each head among the tokens of all texts.

    Every head keeps the first token of the first text (the attention sink), and no other text's first token.

    Args:
        traces: of each text the recorded attention of its rows by layer. A token then counts by the largest weight
            that any query gives it, not by the sum of all: rows that repeat the whole text need each of its details
            once (Kim et al.: KVzip. 2025. https://arxiv.org/abs/2505.23416).

    Raises:
        ConfigError: the texts have fewer tokens than P.
        UnsupportedModelError: the model rotates keys in an unknown way.
    """
    _check_enough(sum(len(text.ids) for text in inputs), n_tokens)
    texts = [
        _scored_layers(lm, text, n_tokens, None if traces is None else traces[i], first=i == 0)
        for i, text in enumerate(inputs)
    ]
    layers: list[tuple[Tensor, Tensor] | None] = []
    for of_texts in zip(*texts, strict=True):
        scored = [kv for kv in of_texts if kv is not None]
        layers.append(_most_attended(scored, n_tokens) if scored else None)
    return KVPrompt(tuple(layers))


def _scored_layers(
    lm: FrozenLM, text: SelectionInput, n_tokens: int, traces: Sequence[LayerTrace | None] | None, *, first: bool
) -> list[tuple[Tensor, Tensor, Tensor] | None]:
    """Per layer keys, values [K, T, D] and their attention [K, T]; keys keep their distance to the rows."""
    computed = compute_keys_values(lm, Prefix(lead=text.ids, follow=text.follow))
    whole = KVPrompt(tuple(None if kv is None else (kv[0][0], kv[1][0]) for kv in computed))
    if traces is None:
        attention = _attention_to_prefix(lm, Prefix(whole), text.rows)
    else:
        attention = [
            None if kv is None or trace is None else trace.peaks(kv[0].float().to(trace.queries.device))
            for kv, trace in zip(whole.layers, traces, strict=True)
        ]
    prompt = whole.select(range(len(text.ids))).to(dtype=torch.float32)
    if uses_rope(lm):
        prompt = shift_positions(lm, prompt, [n_tokens - len(text.ids)] * len(text.ids))
    layers: list[tuple[Tensor, Tensor, Tensor] | None] = []
    for kv, scores in zip(prompt.layers, attention, strict=True):
        if kv is None or scores is None:
            layers.append(None)
            continue
        scores_KT = scores[:, : len(text.ids)].clone().to(kv[0].device)
        scores_KT[:, :_SINK_TOKENS] = torch.inf if first else -torch.inf
        layers.append((*kv, scores_KT))
    return layers


def _attention_to_prefix(lm: FrozenLM, prefix: Prefix, rows: Sequence[Example]) -> list[Tensor | None]:
    """Per layer the attention [K, S] of the rows to each slot of their prefix."""
    counted = [[*row.mask[1:], False] for row in rows]
    return attention_mass(lm, prepare_prefixes(lm, [prefix]), [Row(row.ids) for row in rows], counted)


def _check_enough(available: int, n_tokens: int) -> None:
    if available < n_tokens:
        what, hint = "the text has fewer tokens than virtual tokens are wanted", f"--n-tokens {available} or fewer"
        raise ConfigError(what, where="method.n_tokens", expected=f"<= {available}", got=n_tokens, hint=hint)


def _most_attended(texts: Sequence[tuple[Tensor, Tensor, Tensor]], n_tokens: int) -> tuple[Tensor, Tensor]:
    """Keys and values [K, P, D] of each head's most attended tokens, in text order."""
    keys = torch.cat([keys for keys, _, _ in texts], dim=1)
    values = torch.cat([values for _, values, _ in texts], dim=1)
    attention = torch.cat([scores for _, _, scores in texts], dim=1)
    best = attention.topk(n_tokens, dim=1).indices.sort(dim=1).values[..., None]
    return keys.gather(1, best.expand(-1, -1, keys.shape[2])), values.gather(1, best.expand(-1, -1, values.shape[2]))
