"""Random numbers that leave the global random state alone, so that a seed gives the same start and the same training
on every device, alone or among other runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn


def generator(seed: int) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Layers that are made inside (on the CPU) start from this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@final
class Noise(nn.Module):
    """A stream of generators for noise in training. It is part of the state dict: a resumed run goes on with it."""

    state: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("state", torch.tensor([seed, 0]))

    def next(self) -> torch.Generator:
        """Another generator at each call."""
        seed, count = self.state.tolist()
        self.state[1] += 1
        return generator(seed * 1_000_003 + count)
