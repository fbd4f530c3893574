"""Dropout of virtual tokens: in each step the rows cannot attend to one block of them, so none carries a task alone.

Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov: Dropout. 2014. https://jmlr.org/papers/v15/srivastava14a.html;
of whole positions, as no unit of a frozen model can be left out. One block a step keeps one prefix a step, and so few
blocks keep few recorded passes on a GPU.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from softprompt.data.tokenize import Example


class TokenDropout:
    """Hides one block of virtual tokens from the rows of a step.

    Args:
        share: of the virtual tokens that a block has, in (0, 1).
        n_tokens: virtual tokens of the prompt. The first is never hidden: of keys and values it is what attention
            falls back to.
        seed: of the draws, which depend on seed and step alone, so a resumed run draws the same.
    """

    def __init__(self, share: float, n_tokens: int, seed: int) -> None:
        width = max(1, round(share * n_tokens))
        self.blocks = [(first, min(first + width, n_tokens)) for first in range(1, n_tokens, width)]
        self._seed = seed

    def hide(self, rows: Sequence[Example], step: int) -> list[Example]:
        """The rows of a step with its block hidden; rows that something is hidden from already stay as they are."""
        if not self.blocks:
            return list(rows)
        block = random.Random(f"{self._seed} {step}").choice(self.blocks)  # noqa: S311
        return [row if row.masked_span[0] < row.masked_span[1] else replace(row, masked_span=block) for row in rows]
