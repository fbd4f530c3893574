"""Losses at supervised positions only, in chunks, through the frozen LM head.

Shapes: N supervised positions, n positions of a chunk, H width, V vocabulary, K likeliest tokens of a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import cross_entropy, kl_div

from softprompt.data.soft_labels import SoftLabels
from softprompt.models.head import Head

ChunkLoss = Callable[..., Tensor]  # hidden states [n, H] and n targets of each kind -> losses [n]
MIN_REST = 1e-7  # probability of all tokens outside a teacher's K, at least: float32 sums may exceed 1
CHUNK = 256  # positions; 256 x 49152 logits in float32 are 50 MB


class _Chunked(torch.autograd.Function):
    """Losses of independent positions, with the gradient computed chunk by chunk in the forward pass.

    The head is frozen, so the backward pass needs only d loss / d hidden [N, H]: no logits are kept.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden_NH: Tensor, targets: tuple[Tensor, ...], loss: ChunkLoss, chunk: int
    ) -> Tensor:
        losses, grads = [], []
        for states, *chunk_targets in _split(hidden_NH, targets, chunk):
            with torch.enable_grad():
                leaf = states.detach().requires_grad_(True)
                loss_n = loss(leaf, *chunk_targets)
                grads.append(torch.autograd.grad(loss_n.sum(), leaf)[0])
            losses.append(loss_n.detach())
        ctx.save_for_backward(torch.cat(grads))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: torch.autograd.function.BackwardCFunction, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NH,) = ctx.saved_tensors
        return grad_NH * grad_outputs[0][:, None].to(grad_NH.dtype), None, None, None


def cross_entropies(hidden_NH: Tensor, targets_N: Tensor, head: Head, *, chunk: int = CHUNK) -> Tensor:
    """Cross-entropy -log p(target) [N] in float32 nats, with gradient if the hidden states have one.

    Args:
        hidden_NH: final hidden states at the positions that predict the targets.
        targets_N: token ids.
        head: hidden states [n, H] -> logits [n, V], e.g. `FrozenLM.logits`. Its weights get no gradient.
        chunk: positions whose logits are in memory at a time.
    """

    def loss(states: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(head(states).float(), targets, reduction="none")

    return _by_chunks(hidden_NH, (targets_N,), loss, chunk)


def divergences(hidden_NH: Tensor, teacher_NH: Tensor, head: Head, *, chunk: int = CHUNK) -> Tensor:
    """KL(teacher ‖ student) [N] of the next token over the whole vocabulary, in float32 nats, with gradient if the
    student's hidden states have one.

    Args:
        teacher_NH: the teacher's final hidden states at the same positions; they get no gradient.
    """

    def loss(states: Tensor, teacher_states: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_nV = torch.log_softmax(head(teacher_states).float(), -1)
        student_nV = torch.log_softmax(head(states).float(), -1)
        return kl_div(student_nV, teacher_nV, reduction="none", log_target=True).sum(-1)

    return _by_chunks(hidden_NH, (teacher_NH,), loss, chunk)


@dataclass(frozen=True, eq=False)
class SoftLabelBatch:
    """The soft labels of N positions.

    Attributes:
        ids: [N, K] the teacher's likeliest tokens, int64.
        logprobs: [N, K] their log-probabilities.
        temperature: [N] that the log-probabilities were taken at.
        hard: [N] weight of the cross-entropy with the target token.
        is_hard: whether any position has such a weight.
    """

    ids: Tensor
    logprobs: Tensor
    temperature: Tensor
    hard: Tensor
    is_hard: bool

    @staticmethod
    def of(labels: Sequence[SoftLabels]) -> SoftLabelBatch:
        """The soft labels of all rows, one row after another, all with the same K."""
        sizes = torch.tensor([len(row.ids) for row in labels])
        scalars = torch.tensor([[row.temperature, row.hard] for row in labels]).repeat_interleave(sizes, 0)
        ids_NK = torch.cat([row.ids for row in labels]).long()
        logprobs_NK = torch.cat([row.logprobs for row in labels]).float()
        return SoftLabelBatch(ids_NK, logprobs_NK, scalars[:, 0], scalars[:, 1], any(row.hard for row in labels))

    def map(self, change: Callable[[Tensor], Tensor]) -> SoftLabelBatch:
        """The batch with each tensor replaced by `change` of it."""
        ids, logprobs = change(self.ids), change(self.logprobs)
        return SoftLabelBatch(ids, logprobs, change(self.temperature), change(self.hard), self.is_hard)

    def to(self, device: torch.device) -> SoftLabelBatch:
        """The batch on this device."""
        return self.map(lambda tensor: tensor.to(device))

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tensors: ids, logprobs, temperature, hard."""
        return self.ids, self.logprobs, self.temperature, self.hard


def soft_label_losses(
    hidden_NH: Tensor, targets_N: Tensor, labels: SoftLabelBatch, head: Head, *, chunk: int = CHUNK
) -> Tensor:
    """Distillation loss [N] in float32 nats: T² · KL(teacher ‖ student) at temperature T, plus `hard` · -log p(target).

    The divergence is over the teacher's K likeliest next tokens and all others as one (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531).

    Args:
        targets_N: token ids.
        head: as in `cross_entropies`.
    """
    is_hard = labels.is_hard

    def loss(states: Tensor, targets: Tensor, ids: Tensor, logprobs: Tensor, heat: Tensor, hard: Tensor) -> Tensor:
        logits = head(states).float()
        hard_loss = cross_entropy(logits, targets, reduction="none") if is_hard else 0.0
        logits = logits / heat[:, None]
        normalizer = logits.logsumexp(-1, keepdim=True)
        rest_logprob = logits.scatter(1, ids, -torch.inf).logsumexp(-1) - normalizer[:, 0]
        probs = logprobs.exp()
        rest = (1 - probs.sum(-1)).clamp_min(MIN_REST)
        soft = (probs * (logprobs - logits.gather(1, ids) + normalizer)).sum(-1) + rest * (rest.log() - rest_logprob)
        return heat.square() * soft + hard * hard_loss

    return _by_chunks(hidden_NH, (targets_N, *labels.parts()), loss, chunk)


def _by_chunks(hidden_NH: Tensor, targets: tuple[Tensor, ...], loss: ChunkLoss, chunk: int) -> Tensor:
    if not len(targets[0]):
        return hidden_NH.float().sum(1)
    if hidden_NH.requires_grad:
        return _Chunked.apply(hidden_NH, targets, loss, chunk)  # type: ignore[no-any-return]
    return torch.cat([loss(*part) for part in _split(hidden_NH, targets, chunk)])


def _split(hidden_NH: Tensor, targets: tuple[Tensor, ...], chunk: int) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(chunk) for tensor in (hidden_NH, *targets)), strict=True)
