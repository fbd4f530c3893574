"""The paged attention as an implementation of Transformers' attention interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from softprompt.engine.paged_cache import AttentionStep
from softprompt.errors import EngineError

ATTENTION_NAME = "softprompt_paged"  # of the attention implementation
# The step of the forward pass that runs in this thread: some layers pass no arguments on to their attention.
_CURRENT: ContextVar[AttentionStep | None] = ContextVar("step", default=None)


class AttentionModule(Protocol):
    """The part of an attention layer of Transformers that is used here."""

    layer_idx: int


def paged_attention(
    module: AttentionModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """The attention of Transformers' models during a step; query, key and value are [1, heads, Q, D].

    Raises EngineError for attention that needs more than queries, keys and values.
    """
    step = _CURRENT.get()
    if step is None or position_bias is not None:
        got = None if position_bias is None else "position_bias"
        raise EngineError("the attention of this model cannot be paged", got=got)
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    return step.attend(module.layer_idx, query[0], key[0], value[0], scale, softcap, s_aux)[None], None


@contextmanager
def attending(step: AttentionStep) -> Iterator[None]:
    """Let all layers of a forward pass attend in this step, also those that pass no arguments on.

    Raises EngineError if none of them attends through Transformers' interface.
    """
    token = _CURRENT.set(step)
    try:
        yield
    finally:
        _CURRENT.reset(token)
    if not step.layers:
        raise EngineError(
            "the attention of this model cannot be paged",
            got="layers that do not use Transformers' attention interface",
        )


def no_mask(*_: object, **__: object) -> None:
    """No mask: a step builds its own masks."""


def register_paged_attention() -> None:
    """Make the attention known to Transformers; called when an engine is made."""
    AttentionInterface.register(ATTENTION_NAME, paged_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, no_mask)
