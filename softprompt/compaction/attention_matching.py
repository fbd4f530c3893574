"""Fits a soft prompt so that attention outputs match those after the full text (attention matching).

    targets = collect_targets(lm, inputs)                    # once for all sizes and forms
    prompt = fit_to_attention(lm, prompt, targets, follow=follow)

The queries of the rows in every layer after the full text, and the attention outputs, are recorded. A prompt is then
fitted by gradient in all layers at once, without running the rows again:

    min Σ_layers √ mean_t w_t ‖Vᵀ (o_t − ô_t)‖²

with o_t the attention output of token t after the text, ô_t its output after the prompt, V the directions that the
likelihood of the answers depends on most, and w_t how much it depends on token t: the top of a layer's empirical Fisher
matrix, V Vᵀ ≈ mean_t g_t g_tᵀ with g_t the gradient of the answers' log-likelihood by o_t, and w_t ~ ‖g_t‖². So to
second order the sum is about the divergence that the difference causes, for each layer alone.

The cost of a step is that of the virtual tokens: a fifth of a training step for an embedding prompt, a tenth for a KV
prompt, and every layer is fitted (docs/log). Attention matching is from Zweiger et al. 2026: Fast KV Compaction via
Attention Matching, https://arxiv.org/abs/2602.16284, which solves for values alone; the Fisher weights are from Martens
2014: New Insights and Perspectives on the Natural Gradient Method, https://arxiv.org/abs/1412.1193.

Shapes: T tokens of rows, K key/value heads, R heads that share one, D head size, F directions, P virtual tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.compaction.selection import SelectionInput
from softprompt.data.sampler import permutation
from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.chunked import cross_entropies
from softprompt.objectives.cuda_graphs import capturable
from softprompt.objectives.next_token import learned_positions
from softprompt.objectives.schedule import Budget, rate
from softprompt.prefix.attention_trace import LayerTrace, record_attention
from softprompt.prefix.kv import Prefix, lay_out_prefixes, run_prefixes
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.base import SoftPrompt

FIT_STEPS = 200
_LEARNING_RATE = 5e-2
_WARMUP = 0.1  # share of the steps
_BATCH_TOKENS = 128  # tokens of the rows in a step
_FULL_FIT = Budget(FIT_STEPS, None)
_DIRECTIONS = 96  # eigenvectors of the Fisher matrix that are kept
_ITERATIONS = 4  # of the search for them
_WEIGHT_RANGE = (0.05, 4.0)  # least and greatest weight of a token
_MAX_NUMBERS = 2**28  # recorded float32 numbers: 1 GB


@dataclass(frozen=True, eq=False)
class AttentionTargets:
    """Queries of rows after their texts, and the attention outputs to match.

    Attributes:
        traces: for each text the position at which its rows begin, and the trace of every layer.
        directions: by layer [K, R, D', F].
    """

    traces: tuple[tuple[int, tuple[LayerTrace | None, ...]], ...]
    directions: tuple[Tensor | None, ...]


def collect_targets(lm: FrozenLM, inputs: Sequence[SelectionInput]) -> AttentionTargets:
    """Run the rows of every text, as many as fit in the text's share of memory, and record their attention.

    Raises:
        DataError: a row that does not fit in the model's context after its text.
        UnsupportedModelError: a model whose attention cannot be recorded.
    """
    traces: list[tuple[int, tuple[LayerTrace | None, ...]]] = []
    for text in inputs:
        rows = _rows_that_fit(lm, text.rows, _MAX_NUMBERS // len(inputs))
        prefix = prepare_prefixes(lm, [Prefix(lead=text.ids, follow=text.follow)])

        def score(states_TH: Tensor, numbers: Sequence[int], rows: Sequence[Example] = rows) -> Tensor:
            where, targets = learned_positions([rows[i] for i in numbers])
            return cross_entropies(states_TH[where.to(lm.device)], targets.to(lm.device), lm.logits).sum()

        layers = tuple(record_attention(lm, prefix, [Row(row.ids) for row in rows], score))
        traces.append((prefix.lengths[0], layers))
    directions: list[Tensor | None] = []
    for of_layer in zip(*(layers for _, layers in traces), strict=True):
        gradients = [trace.gradient for trace in of_layer if trace]
        directions.append(_top_directions(torch.cat(gradients, 2)) if gradients else None)
    return AttentionTargets(tuple(traces), tuple(directions))


def fit_to_attention(
    lm: FrozenLM,
    prompt: SoftPrompt,
    targets: AttentionTargets,
    lead: tuple[int, ...] = (),
    follow: tuple[int, ...] = (),
    budget: Budget = _FULL_FIT,
    progress: Callable[[float], None] = lambda done: None,
) -> SoftPrompt:
    """The prompt fitted to the targets, in float32.

    Args:
        targets: queries and outputs to match.
        lead, follow: the ids before and after the prompt.
        budget: steps or time of the fit.
        progress: called with the fraction completed.

    Raises UnsupportedModelError for a model whose queries cannot be moved.
    """
    tensors = {name: tensor.float().requires_grad_() for name, tensor in prompt.freeze().tensors().items()}
    begin = len(lead) + prompt.n_tokens + len(follow)
    with torch.no_grad():
        layers = [_Layer.of(lm, i, targets, begin) for i in range(len(targets.directions))]
    tokens = next(len(layer.weights) for layer in layers if layer is not None)
    optimizer = torch.optim.Adam(tensors.values())
    draw = torch.Generator().manual_seed(0)
    drawn_T = torch.zeros(_BATCH_TOKENS, dtype=torch.long, device=lm.device)
    live = Prefix(prompt.replace_tensors(tensors), lead, follow)
    layout = lay_out_prefixes(lm, [live])

    def differentiate() -> None:
        matched = zip(layers, run_prefixes(lm, [live], layout).layers, strict=True)
        pairs = [(layer, kv) for layer, kv in matched if layer and kv]
        losses = [layer.loss(_at_home(lm, keys), _at_home(lm, values), drawn_T) for layer, (keys, values) in pairs]
        grads = torch.autograd.grad(torch.stack(losses).sum(), list(tensors.values()))
        for tensor, grad in zip(tensors.values(), grads, strict=True):
            tensor.grad = grad

    started = time.monotonic()
    step = 0
    with torch.enable_grad():
        compute_gradients = capturable(lm, differentiate)
        while (done := budget.progress(step, time.monotonic() - started)) < 1:
            optimizer.param_groups[0]["lr"] = _LEARNING_RATE * rate("cosine", _WARMUP, done)
            drawn_T.copy_(torch.randint(tokens, (_BATCH_TOKENS,), generator=draw))
            compute_gradients()
            optimizer.step()
            step += 1
            progress(budget.progress(step, time.monotonic() - started))
    return prompt.replace_tensors(tensors).freeze()


def _at_home(lm: FrozenLM, keys_or_values: Tensor) -> Tensor:
    """Those of the first prefix in float32, on the model's first device: layers may lie on several."""
    return keys_or_values[0].float().to(lm.device)


@dataclass(frozen=True, eq=False)
class _Layer:
    """The trace [T] of all texts, moved to the rows' positions after the prompt, and `weights` [T] of the tokens."""

    trace: LayerTrace
    weights: Tensor
    directions: Tensor

    @staticmethod
    def of(lm: FrozenLM, number: int, targets: AttentionTargets, begin: int) -> _Layer | None:
        directions = targets.directions[number]
        if directions is None:
            return None
        of_texts = ((length, layers[number]) for length, layers in targets.traces)
        trace = LayerTrace.joined([part.moved(lm, number, begin - length) for length, part in of_texts if part])
        size_T = trace.gradient.square().sum((0, 1, 3))
        return _Layer(trace, (size_T / size_T.mean().clamp_min(1e-30)).clamp(*_WEIGHT_RANGE), directions)

    def loss(self, keys_KSD: Tensor, values_KSD: Tensor, tokens: Tensor) -> Tensor:
        """The weighted distance of these tokens' attention outputs from their targets."""
        trace = self.trace.of(tokens)
        difference_KRTD = trace.attend_to(keys_KSD, values_KSD) - trace.output
        projected_TF = torch.einsum("krtd,krdf->tf", difference_KRTD, self.directions)
        return ((projected_TF.square().sum(1) * self.weights[tokens]).mean() + 1e-12).sqrt()


def _top_directions(gradient_KRTD: Tensor) -> Tensor:
    """V [K, R, D', F]: the top eigenvectors of the mean of g gᵀ over tokens, each scaled by its eigenvalue's root."""
    shape = gradient_KRTD.shape
    rows_TX = gradient_KRTD.movedim(2, 0).flatten(1)
    draw = torch.Generator().manual_seed(0)
    basis_XF = torch.randn(rows_TX.shape[1], min(_DIRECTIONS, *rows_TX.shape), generator=draw).to(rows_TX)
    for _ in range(_ITERATIONS):  # subspace iteration
        basis_XF = torch.linalg.qr(rows_TX.T @ (rows_TX @ basis_XF)).Q
    _, sizes_F, turns_FF = torch.linalg.svd(rows_TX @ basis_XF, full_matrices=False)
    return (basis_XF @ turns_FF.T * sizes_F / len(rows_TX) ** 0.5).view(*shape[:2], shape[3], -1)


def _rows_that_fit(lm: FrozenLM, rows: Sequence[Example], numbers: int) -> list[Example]:
    """As many rows as have traces of at most so many numbers, spread over all rows; one at least."""
    shapes = [shape for shape in lm.geometry.layers if shape is not None]
    per_token = sum(lm.geometry.n_heads * (shape.key_dim + 3 * shape.value_dim + 1) for shape in shapes)
    room = numbers // per_token
    kept: list[int] = []
    fits = sum(len(row.ids) for row in rows) <= room
    for i in range(len(rows)) if fits else permutation(len(rows), 0).tolist():
        if kept and len(rows[i].ids) > room:
            break
        kept.append(i)
        room -= len(rows[i].ids)
    return [rows[i] for i in sorted(kept)]
