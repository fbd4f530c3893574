"""Shrinks the limits of a model's attention for a while, so that a short trial goes past them.

Sliding windows and chunks are thousands of tokens long. Whether a path of ours treats them as the model does shows in a
trial of six tokens only if they are a few tokens long, for both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from softprompt.models.frozen_lm import FrozenLM

# Names under which configs and attention modules hold the number of tokens that a token attends to.
LIMITS = (
    "sliding_window",
    "sliding_window_size",
    "window_size",
    "attention_window_size",
    "keep_window_size",
    "attention_chunk_size",
    "index_topk",
)
_CHOSEN = 4  # times as many tokens for a layer that chooses the best ones: with few the choice is never a tie


@contextlib.contextmanager
def attention_limits(lm: FrozenLM, limit: int) -> Iterator[tuple[int | None, ...] | None]:
    """Every limit set to `limit` tokens. Yields the windows of the layers then; None if the model has no limits."""
    module = lm.backbone.module
    holders: list[tuple[object, str, int]] = []
    for holder in (lm.backbone.config, *module.modules()):
        for name in LIMITS:
            value = vars(holder).get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                holders.append((holder, name, value))
    if not holders:
        yield None
        return
    try:
        for holder, name, _ in holders:
            setattr(holder, name, limit * _CHOSEN if name == "index_topk" else limit)
        yield tuple(limit if window is not None else None for window in lm.geometry.windows)
    finally:
        for holder, name, value in holders:
            setattr(holder, name, value)
