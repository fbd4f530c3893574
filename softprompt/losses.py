"""Losses at supervised positions only, in chunks, through the frozen LM head.

Shapes: N supervised positions, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Head = Callable[[Tensor], Tensor]
CHUNK = 256  # positions; 256 x 49152 logits in float32 are 50 MB


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies whose gradient is made chunk by chunk in the forward pass.

    The head is frozen, so all that the backward pass needs is d loss / d hidden [N, H]: no logits are kept.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, targets_N: Tensor, head: Head, chunk: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        grads = []
        for states, targets in zip(hidden_NH.split(chunk), targets_N.split(chunk), strict=True):
            with torch.enable_grad():
                leaf = states.detach().requires_grad_(True)
                loss = cross_entropy(head(leaf).float(), targets, reduction="sum")
                grads.append(torch.autograd.grad(loss, leaf)[0])
            total += loss.detach()
        ctx.save_for_backward(torch.cat(grads))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad_NH,) = ctx.saved_tensors
        return grad_NH * grad_outputs[0].to(grad_NH.dtype), None, None, None


def cross_entropy_sum(hidden_NH: Tensor, targets_N: Tensor, head: Head, *, chunk: int = CHUNK) -> Tensor:
    """Sum over N positions of -log p(target), in float32.

    Args:
        hidden_NH: final hidden states at the positions that predict the targets.
        targets_N: token ids.
        head: hidden states [n, H] -> logits [n, V], e.g. `FrozenLM.logits`. Its weights get no gradient.
        chunk: positions whose logits are held at a time.
    """
    if not hidden_NH.requires_grad:
        return log_likelihoods(hidden_NH, targets_N, head, chunk=chunk).sum().neg()
    return _ChunkedCrossEntropy.apply(hidden_NH, targets_N, head, chunk)  # type: ignore[no-any-return]


@torch.no_grad()
def log_likelihoods(hidden_NH: Tensor, targets_N: Tensor, head: Head, *, chunk: int = CHUNK) -> Tensor:
    """log p(target) [N] in float32, without gradient."""
    parts = [
        -cross_entropy(head(states).float(), targets, reduction="none")
        for states, targets in zip(hidden_NH.split(chunk), targets_N.split(chunk), strict=True)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, device=hidden_NH.device)
