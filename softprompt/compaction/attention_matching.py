"""A soft prompt fitted so that rows behind it get what they get behind the texts that it stands for.

    rows = heard(lm, readings)                    # once for all sizes and forms
    prompt = matched(lm, prompt, rows, follow=follow)

What the rows ask in every layer behind the whole text, and what attention gives them, is kept. A prompt is then fitted
by gradient, layer beside layer, without running the rows again:

    min Σ_layers √ mean_t w_t ‖Vᵀ (o_t − ô_t)‖²

with o_t what attention gives token t behind the text, ô_t what it would give behind the prompt, V the directions that
the answers' likelihood depends on most, and w_t how much it depends on token t: the top of a layer's empirical Fisher
matrix, V Vᵀ ≈ mean_t g_t g_tᵀ with g_t the gradient of the answers' log-likelihood by o_t, and w_t ~ ‖g_t‖². So the sum
is about the divergence that the difference causes, to second order, each layer for itself.

A step costs what the virtual tokens cost: a fifth of a training step for an embedding prompt, a tenth for a KV prompt,
and teaches every layer (docs/log.md). Matching attention is from Zweiger et al. 2026: Fast KV Compaction via Attention
Matching, https://arxiv.org/abs/2602.16284, which solves for values alone; the Fisher weights are Martens 2014: New
Insights and Perspectives on the Natural Gradient Method, https://arxiv.org/abs/1412.1193.

Shapes: T tokens of rows, K key/value heads, R heads that share one, D head size, F directions, P virtual tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.compaction.selection import SelectionInput
from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.chunked import cross_entropies
from softprompt.objectives.cuda_graphs import capturable
from softprompt.objectives.next_token import learned_places
from softprompt.objectives.schedule import Budget, rate
from softprompt.prefix.attention_trace import LayerTrace, record_attention
from softprompt.prefix.kv import Prefix, lay_out_prefixes, run_prefixes
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.base import SoftPrompt

FIT_STEPS, RATE, WARMUP, TOKENS = 200, 5e-2, 0.1, 128  # TOKENS of the rows in a step
WHOLE = Budget(FIT_STEPS, None)
DIRECTIONS, ROUNDS = 96, 4  # of the Fisher matrix that are kept; rounds of their search
WEIGHTS = (0.05, 4.0)  # the least and the most that a token counts
NUMBERS = 2**28  # of all that is kept: 1 GB


@dataclass(frozen=True, eq=False)
class AttentionTargets:
    """What rows asked behind their texts, and got.

    Attributes:
        readings: of each reading the position that its rows begin at, and its queries by layer.
        directions: by layer [K, R, D', F].
    """

    readings: tuple[tuple[int, tuple[LayerTrace | None, ...]], ...]
    directions: tuple[Tensor | None, ...]


def collect_targets(lm: FrozenLM, readings: Sequence[SelectionInput]) -> AttentionTargets:
    """What the rows of these readings ask and get: of each reading as many as fit in its share of memory.

    Raises:
        DataError: a row that does not fit in the model's context behind its text.
        UnsupportedModelError: a model whose attention cannot be listened to.
    """
    found = []
    for reading in readings:
        rows = _first(lm, reading.rows, NUMBERS // len(readings))
        prefix = prepare_prefixes(lm, [Prefix(lead=reading.ids, follow=reading.follow)])

        def score(states_TH: Tensor, numbers: Sequence[int], rows: Sequence[Example] = rows) -> Tensor:
            where, targets = learned_places([rows[i] for i in numbers])
            return cross_entropies(states_TH[where.to(lm.device)], targets.to(lm.device), lm.logits).sum()

        found.append((prefix.lengths[0], tuple(record_attention(lm, prefix, [Row(row.ids) for row in rows], score))))
    gradients = ([queries.gradient for _, layers in found if (queries := layers[i])] for i in range(len(found[0][1])))
    return AttentionTargets(tuple(found), tuple(_directions(torch.cat(own, 2)) if own else None for own in gradients))


def fit_to_attention(
    lm: FrozenLM,
    prompt: SoftPrompt,
    rows: AttentionTargets,
    lead: tuple[int, ...] = (),
    follow: tuple[int, ...] = (),
    budget: Budget = WHOLE,
    progress: Callable[[float], None] = lambda done: None,
) -> SoftPrompt:
    """The prompt, fitted; in float32.

    Args:
        rows: what it is fitted on.
        lead, follow: the ids between which it stands.
        horizon: how long it is fitted.
        progress: is told how far it is.

    Raises UnsupportedModelError for a model whose queries cannot be moved.
    """
    tensors = {name: tensor.float().requires_grad_() for name, tensor in prompt.freeze().tensors().items()}
    begin = len(lead) + prompt.n_tokens + len(follow)
    with torch.no_grad():
        layers = [_Layer.of(lm, i, rows, begin) for i in range(len(rows.directions))]
    tokens = next(len(layer.weights) for layer in layers if layer is not None)
    optimizer = torch.optim.Adam(tensors.values())
    draw = torch.Generator().manual_seed(0)
    drawn_T = torch.zeros(TOKENS, dtype=torch.long, device=lm.device)
    live = Prefix(prompt.replace_tensors(tensors), lead, follow)
    layout = lay_out_prefixes(lm, [live])

    def differentiate() -> None:
        found = zip(layers, run_prefixes(lm, [live], layout).layers, strict=True)
        pairs = [(layer, kv) for layer, kv in found if layer and kv]
        losses = [layer.loss(keys[0].float(), values[0].float(), drawn_T) for layer, (keys, values) in pairs]
        grads = torch.autograd.grad(torch.stack(losses).sum(), list(tensors.values()))
        for tensor, grad in zip(tensors.values(), grads, strict=True):
            tensor.grad = grad

    opened, step = time.monotonic(), 0
    with torch.enable_grad():
        again = capturable(lm, differentiate)
        while (done := budget.progress(step, time.monotonic() - opened)) < 1:
            optimizer.param_groups[0]["lr"] = RATE * rate("cosine", WARMUP, done)
            drawn_T.copy_(torch.randint(tokens, (TOKENS,), generator=draw))
            again()
            optimizer.step()
            step += 1
            progress(budget.progress(step, time.monotonic() - opened))
    return prompt.replace_tensors(tensors).freeze()


@dataclass(frozen=True, eq=False)
class _Layer:
    """The queries [T] of all readings, moved to where the prompt has them; `weights` [T] of the tokens."""

    queries: LayerTrace
    weights: Tensor
    directions: Tensor

    @staticmethod
    def of(lm: FrozenLM, number: int, rows: AttentionTargets, begin: int) -> _Layer | None:
        directions = rows.directions[number]
        parts = [own.moved(lm, number, begin - length) for length, of in rows.readings if (own := of[number])]
        if directions is None:
            return None
        queries = LayerTrace.joined(parts)
        size_T = queries.gradient.square().sum((0, 1, 3))
        return _Layer(queries, (size_T / size_T.mean().clamp_min(1e-30)).clamp(*WEIGHTS), directions)

    def loss(self, keys_KSD: Tensor, values_KSD: Tensor, tokens: Tensor) -> Tensor:
        """By how much these tokens miss what they got."""
        queries = self.queries.of(tokens)
        missing_KRTD = queries.attend_to(keys_KSD, values_KSD) - queries.output
        felt_TF = torch.einsum("krtd,krdf->tf", missing_KRTD, self.directions)
        return ((felt_TF.square().sum(1) * self.weights[tokens]).mean() + 1e-12).sqrt()


def _directions(gradient_KRTD: Tensor) -> Tensor:
    """V [K, R, D', F]: the top eigenvectors of the mean of g gᵀ over tokens, each as long as its eigenvalue's root."""
    shape = gradient_KRTD.shape
    rows_TX = gradient_KRTD.movedim(2, 0).flatten(1)
    draw = torch.Generator().manual_seed(0)
    basis_XF = torch.randn(rows_TX.shape[1], min(DIRECTIONS, *rows_TX.shape), generator=draw).to(rows_TX)
    for _ in range(ROUNDS):  # subspace iteration
        basis_XF = torch.linalg.qr(rows_TX.T @ (rows_TX @ basis_XF)).Q
    _, sizes_F, turns_FF = torch.linalg.svd(rows_TX @ basis_XF, full_matrices=False)
    return (basis_XF @ turns_FF.T * sizes_F / len(rows_TX) ** 0.5).view(*shape[:2], shape[3], -1)


def _first(lm: FrozenLM, rows: Sequence[Example], numbers: int) -> list[Example]:
    """As many of the rows, one at least, as can be kept in so many numbers."""
    shapes = [shape for shape in lm.geometry.layers if shape is not None]
    per_token = sum(lm.geometry.n_heads * (shape.key_dim + 3 * shape.value_dim + 1) for shape in shapes)
    room, kept = numbers // per_token, list[Example]()
    for row in rows:
        if kept and len(row.ids) > room:
            break
        kept.append(row)
        room -= len(row.ids)
    return kept
