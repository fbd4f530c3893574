"""Averages of a prompt over the last steps, which few rows disturb less than the prompt itself.

Polyak, Juditsky: Acceleration of stochastic approximation by averaging. 1992; as an exponential moving average with the
warm-up of Tarvainen, Valpola: Mean teachers. 2017. https://arxiv.org/abs/1703.01780.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn


class MovingAverage:
    """The exponential moving average of trained tensors.

    Args:
        parameters: the tensors, which an optimizer changes in place.
        decay: weight of the average beside the newest value, in (0, 1); smaller in the first steps.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = list(parameters), decay
        self._average = [parameter.detach().clone() for parameter in self._parameters]
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the values after a step into the average."""
        self._steps += 1
        decay = min(self._decay, self._steps / (self._steps + 9))
        for average, parameter in zip(self._average, self._parameters, strict=True):
            average.lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the tensors have their average values."""
        own = [parameter.detach().clone() for parameter in self._parameters]
        self._set(self._average)
        try:
            yield
        finally:
            self._set(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that changes; see `load_state_dict`."""
        steps = {"steps": torch.tensor(self._steps)}
        return steps | {f"parameter{i}": average for i, average in enumerate(self._average)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from this state."""
        self._steps = int(state["steps"])
        for i, average in enumerate(self._average):
            average.copy_(state[f"parameter{i}"])

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
