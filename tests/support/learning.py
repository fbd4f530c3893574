"""A training loop of ten lines for any method: plain, so that tests of methods need no other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.data.tokenize import Example
from softprompt.methods.base import Method
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import learned_tokens, token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.base import SoftPrompt

FOLLOW = (50, 51)


def nats_behind(
    lm: FrozenLM, prompts: Sequence[SoftPrompt], prefix_ids: Sequence[int], rows: Sequence[Example]
) -> Tensor:
    """Mean -log p of the learned tokens, row i after prompt owners[i]."""
    prefixes = prepare_prefixes(lm, [Prefix(prompt, (), FOLLOW) for prompt in prompts])
    return token_losses(lm, prefixes, rows, list(prefix_ids)).sum() / learned_tokens(rows)


def nats(lm: FrozenLM, method: Method, rows: Sequence[Example]) -> Tensor:
    """Of rows after the live prompts, with gradient into the method."""
    return nats_behind(lm, *method.assign(rows), rows)


def judged(lm: FrozenLM, method: Method, rows: Sequence[Example]) -> float:
    """Of rows after the method as it will be frozen."""
    method.eval()
    with torch.no_grad():
        loss = nats(lm, method, rows).item()
    method.train()
    return loss


def learn(lm: FrozenLM, method: Method, rows: Sequence[Example], *, steps: int, lr: float = 0.1) -> None:
    """AdamW on eight rows a step, in turn, the rate falling to zero."""
    optimizer = torch.optim.AdamW(method.parameters(), lr=lr, weight_decay=0.0)
    for step in range(steps):
        batch = [rows[(8 * step + i) % len(rows)] for i in range(8)]
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        nats(lm, method, batch).backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def stir(method: Method, size: float = 0.3) -> dict[str, Tensor]:
    """Move every parameter, so that no zero hides a term of an equation; returns parameters and buffers by name."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * size)
    return {name: tensor.detach() for name, tensor in method.state_dict().items()}
