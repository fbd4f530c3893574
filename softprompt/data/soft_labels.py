"""Soft labels: the likeliest next tokens of a teacher at each learned token of a row, with their probabilities.

Shapes: N learned tokens, K likeliest tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor  # rows are read, and --help is shown, without waiting for torch


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """Distilled from (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    Attributes:
        ids: [N, K] the likeliest tokens, int32.
        logprobs: [N, K] their log-probabilities, in nats, at `temperature`.
        temperature: that the logits of teacher and student are divided by.
        hard: weight of the cross-entropy of the row's tokens, added to the divergence from the teacher.
    """

    ids: Tensor
    logprobs: Tensor
    temperature: float = 1.0
    hard: float = 0.0
