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
    """Cross entropies whose gradient is made chunk by chunk in the forward pass.

    The head is frozen, so all that the backward pass needs is d loss / d hidden [N, H]: no logits are kept.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, targets_N: Tensor, head: Head, chunk: int) -> Tensor:
        losses, grads = [], []
        for states, targets in zip(hidden_NH.split(chunk), targets_N.split(chunk), strict=True):
            with torch.enable_grad():
                leaf = states.detach().requires_grad_(True)
                loss_n = cross_entropy(head(leaf).float(), targets, reduction="none")
                grads.append(torch.autograd.grad(loss_n.sum(), leaf)[0])  # a loss depends on its own position alone
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
    if not len(targets_N):
        return hidden_NH.float().sum(1)
    if hidden_NH.requires_grad:
        return _ChunkedCrossEntropy.apply(hidden_NH, targets_N, head, chunk)  # type: ignore[no-any-return]
    parts = [
        cross_entropy(head(states).float(), targets, reduction="none")
        for states, targets in zip(hidden_NH.split(chunk), targets_N.split(chunk), strict=True)
    ]
    return torch.cat(parts)
