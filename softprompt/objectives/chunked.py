"""Losses at supervised positions only, in chunks, through the frozen LM head.

Shapes: N supervised positions, H width, V vocabulary, K tokens that a teacher tells of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from softprompt.data.soft_labels import SoftLabels

Head = Callable[[Tensor], Tensor]
Loss = Callable[..., Tensor]  # hidden states [n, H] and what they are judged by, n of each -> losses [n]
LEAST = 1e-7  # probability of all tokens that a teacher does not tell of: sums in float32 may leave less than none
CHUNK = 256  # positions; 256 x 49152 logits in float32 are 50 MB


class _Chunked(torch.autograd.Function):
    """Losses of positions, each of its own hidden state alone, whose gradient is made chunk by chunk on the way.

    The head is frozen, so all that the backward pass needs is d loss / d hidden [N, H]: no logits are kept.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, others: tuple[Tensor, ...], loss: Loss, chunk: int) -> Tensor:
        losses, grads = [], []
        for states, *judges in _split(hidden_NH, others, chunk):
            with torch.enable_grad():
                leaf = states.detach().requires_grad_(True)
                loss_n = loss(leaf, *judges)
                grads.append(torch.autograd.grad(loss_n.sum(), leaf)[0])
            losses.append(loss_n.detach())
        ctx.save_for_backward(torch.cat(grads))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad_NH,) = ctx.saved_tensors
        return grad_NH * grad_outputs[0][:, None].to(grad_NH.dtype), None, None, None


def cross_entropies(hidden_NH: Tensor, targets_N: Tensor, head: Head, *, chunk: int = CHUNK) -> Tensor:
    """-log p(target) [N], in float32, with gradient if the hidden states have one.

    Args:
        hidden_NH: final hidden states at the positions that predict the targets.
        targets_N: token ids.
        head: hidden states [n, H] -> logits [n, V], e.g. `FrozenLM.logits`. Its weights get no gradient.
        chunk: positions whose logits are held at a time.
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

    def loss(states: Tensor, taught: Tensor) -> Tensor:
        with torch.no_grad():
            wanted_nV = torch.log_softmax(head(taught).float(), -1)
        return kl_div(torch.log_softmax(head(states).float(), -1), wanted_nV, reduction="none", log_target=True).sum(-1)

    return _by_chunks(hidden_NH, (teacher_NH,), loss, chunk)


@dataclass(frozen=True, eq=False)
class SoftLabelBatch:
    """The lessons of N positions.

    Attributes:
        ids: [N, K] as in `Lesson`, int64.
        logprobs: [N, K] as there.
        temperature, hard: [N] as there.
        is_hard: whether any position has a weight for its own token.
    """

    ids: Tensor
    logprobs: Tensor
    temperature: Tensor
    hard: Tensor
    is_hard: bool

    @staticmethod
    def of(lessons: Sequence[SoftLabels]) -> SoftLabelBatch:
        """Lesson after lesson, all with the same K."""
        sizes = torch.tensor([len(lesson.ids) for lesson in lessons])
        facts = torch.tensor([[lesson.temperature, lesson.hard] for lesson in lessons]).repeat_interleave(sizes, 0)
        ids_NK = torch.cat([lesson.ids for lesson in lessons]).long()
        logprobs_NK = torch.cat([lesson.logprobs for lesson in lessons]).float()
        return SoftLabelBatch(ids_NK, logprobs_NK, facts[:, 0], facts[:, 1], any(lesson.hard for lesson in lessons))

    def to(self, device: torch.device) -> SoftLabelBatch:
        """The same on this device."""
        ids, logprobs, temperature, hard = (part.to(device) for part in self.parts())
        return SoftLabelBatch(ids, logprobs, temperature, hard, self.is_hard)

    def parts(self) -> tuple[Tensor, ...]:
        """The tensors, in the order above."""
        return self.ids, self.logprobs, self.temperature, self.hard


def soft_label_losses(
    hidden_NH: Tensor, targets_N: Tensor, taught: SoftLabelBatch, head: Head, *, chunk: int = CHUNK
) -> Tensor:
    """T² · KL(teacher ‖ student) [N] over the teacher's K likeliest next tokens and all others as one, at temperature T
    (Hinton et al. 2015, https://arxiv.org/abs/1503.02531), plus `hard` · -log p(target); in float32 nats.

    Args:
        targets_N: token ids.
        head: as in `cross_entropies`.
    """
    is_hard = taught.is_hard

    def loss(states: Tensor, targets: Tensor, ids: Tensor, taught: Tensor, heat: Tensor, hard: Tensor) -> Tensor:
        logits = head(states).float()
        answer = cross_entropy(logits, targets, reduction="none") if is_hard else 0.0
        logits = logits / heat[:, None]
        whole = logits.logsumexp(-1, keepdim=True)
        rest = logits.scatter(1, ids, -torch.inf).logsumexp(-1) - whole[:, 0]
        share = taught.exp()
        left = (1 - share.sum(-1)).clamp_min(LEAST)
        soft = (share * (taught - logits.gather(1, ids) + whole)).sum(-1) + left * (left.log() - rest)
        return heat.square() * soft + hard * answer

    return _by_chunks(hidden_NH, (targets_N, *taught.parts()), loss, chunk)


def _by_chunks(hidden_NH: Tensor, others: tuple[Tensor, ...], loss: Loss, chunk: int) -> Tensor:
    if not len(others[0]):
        return hidden_NH.float().sum(1)
    if hidden_NH.requires_grad:
        return _Chunked.apply(hidden_NH, others, loss, chunk)  # type: ignore[no-any-return]
    return torch.cat([loss(*part) for part in _split(hidden_NH, others, chunk)])


def _split(hidden_NH: Tensor, others: tuple[Tensor, ...], chunk: int) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(chunk) for tensor in (hidden_NH, *others)), strict=True)
