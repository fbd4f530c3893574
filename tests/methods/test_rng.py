"""Randomness that is nobody else's."""

from __future__ import annotations

import torch
from torch import nn

from softprompt.methods.rng import Noise, seeded


def drawn(noise: Noise) -> list[float]:
    return torch.rand(3, generator=noise.next()).tolist()


def test_noise_goes_on_where_its_state_was_saved() -> None:
    one, two = Noise(5), Noise(6)
    first = drawn(one)
    assert drawn(one) != first != drawn(two)
    two.load_state_dict(one.state_dict())
    assert drawn(one) == drawn(two)
    assert drawn(Noise(5)) == first


def test_layers_made_from_a_seed() -> None:
    before = torch.get_rng_state()
    with seeded(1):
        one = nn.Linear(3, 3)
    with seeded(1):
        two = nn.Linear(3, 3)
    with seeded(2):
        three = nn.Linear(3, 3)
    assert torch.equal(one.weight, two.weight) and not torch.equal(one.weight, three.weight)
    assert torch.equal(torch.get_rng_state(), before)
