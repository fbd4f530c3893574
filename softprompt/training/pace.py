"""The speed of training on a machine: pure arithmetic.

pace = Pace(per_step=0.2, per_token=0.004)        # seconds; `speed.measured_pace` measures them
pace.step(256)                                    # seconds of a step over 256 tokens of rows
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from softprompt.errors import StoreError
from softprompt.files import read_json

PACE_FILE = "pace.json"  # in a run's folder: a resumed run chooses by what was measured at its start
VALIDATION_SHARE = 0.1  # of the elapsed time of a timed run: above it no further validation starts
_FORWARD = 0.5  # of a token's time, without the backward pass


@dataclass(frozen=True)
class Pace:
    """Seconds of a training step: a constant, such as to read the weights, and a part for each token of its rows."""

    per_step: float
    per_token: float

    def step(self, tokens: float) -> float:
        """Seconds of a training step over so many tokens."""
        return self.per_step + self.per_token * tokens

    def forward(self, tokens: float) -> float:
        """Seconds to run so many tokens without a gradient."""
        return self.step(tokens) * _FORWARD

    def to_dict(self) -> dict[str, float]:
        """As JSON data; `read_pace` is the inverse."""
        return asdict(self)

    @staticmethod
    def between(few: tuple[float, float], many: tuple[float, float]) -> Pace:
        """The line through two measurements, each (tokens, seconds), without negative parts.

        All of the time counts as the tokens' if more tokens took no longer, since a clock is noisy, or if both have
        the same tokens, since one whole row may be longer than either.
        """
        few_tokens, few_s = few
        many_tokens, many_s = many
        through_zero = Pace(0.0, many_s / many_tokens)
        if many_tokens <= few_tokens or many_s <= few_s:
            return through_zero
        per_token = (many_s - few_s) / (many_tokens - few_tokens)
        per_step = few_s - per_token * few_tokens
        return Pace(per_step, per_token) if per_step > 0 else through_zero


def read_pace(run: Path) -> Pace | None:
    """The speed that was measured at the start of the run in this folder; None if it was not."""
    try:
        return _PACE.validate_python(read_json(run / PACE_FILE))
    except (StoreError, ValidationError):
        return None


_PACE = TypeAdapter(Pace)
