"""Parts of every trial of a loaded model: token ids, attempts that may fail, and the comparison of logits."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from softprompt.errors import FOREIGN_ERRORS, UnsupportedModelError, first_line, is_out_of_memory
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.tolerance import tolerance

PROBE_TOKENS = 6


def probe_ids(lm: FrozenLM, count: int = PROBE_TOKENS) -> list[int]:
    """Token ids for trial passes, the same in every process."""
    return [(7 * i + 3) % lm.geometry.vocab for i in range(count)]


def failure_of(attempt: Callable[[], str]) -> str:
    """The reason why an attempt failed, also if the model's code raised; "" if it did not.

    Memory that runs out is no failure of the attempt, and is raised.
    """
    try:
        return attempt()
    except FOREIGN_ERRORS as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {first_line(error)}"
    except UnsupportedModelError as error:
        return str(error)


def logit_difference(lm: FrozenLM, ours: Tensor, wanted: Tensor, what: str = "after a prefix") -> str:
    """The relative difference of two tensors of one shape in words; "" if it is within the model's tolerance."""
    off = ((ours.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-6)).item()
    return "" if off <= tolerance(lm) else f"its logits {what} are off by {off:.1%}"
