"""Losses at supervised positions only, in chunks, through the frozen LM head.

Shapes: N supervised positions, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

Head = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]  # hidden states [n, H] and what they are judged by -> losses [n]
CHUNK = 256  # positions; 256 x 49152 logits in float32 are 50 MB


class _Chunked(torch.autograd.Function):
    """Losses of positions, each of its own hidden state alone, whose gradient is made chunk by chunk on the way.

    The head is frozen, so all that the backward pass needs is d loss / d hidden [N, H]: no logits are kept.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, others: Tensor, loss: Loss, chunk: int) -> Tensor:
        losses, grads = [], []
        for states, other in zip(hidden_NH.split(chunk), others.split(chunk), strict=True):
            with torch.enable_grad():
                leaf = states.detach().requires_grad_(True)
                loss_n = loss(leaf, other)
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

    return _by_chunks(hidden_NH, targets_N, loss, chunk)


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

    return _by_chunks(hidden_NH, teacher_NH, loss, chunk)


def _by_chunks(hidden_NH: Tensor, others: Tensor, loss: Loss, chunk: int) -> Tensor:
    if not len(others):
        return hidden_NH.float().sum(1)
    if hidden_NH.requires_grad:
        return _Chunked.apply(hidden_NH, others, loss, chunk)  # type: ignore[no-any-return]
    return torch.cat([loss(*part) for part in zip(hidden_NH.split(chunk), others.split(chunk), strict=True)])
