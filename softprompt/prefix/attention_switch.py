"""Switches the attention of a loaded Transformers model for a while.

Transformers looks attention functions up by name in a global table. This module registers one name, whose function
passes each call on to the model's own `AttentionSwitch`; the switch knows the function that the calling thread wants.
So two models share nothing, and a thread that calls a model in the middle of another thread's pass gets the attention
that the model had before.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import final

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from softprompt.models.transformers_compat import (
    AttentionFunction,
    attention_function,
    attention_name,
)

IMPLEMENTATION = "softprompt_prefix"  # in Transformers' table of attention functions
_ATTRIBUTE = "softprompt_attention"  # of the model and its attention modules: their switch
_making = threading.Lock()


def register_prefix_attention() -> None:
    """Make the implementation's name known to Transformers; called when a model gets a switch."""
    AttentionInterface.register(IMPLEMENTATION, _dispatch)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)  # additive: right for every attention of other threads


class _ThreadCall(threading.local):
    """The function that this thread's calls use."""

    function: AttentionFunction | None = None


@final
class AttentionSwitch:
    """The attention of one Transformers model. All threads share it, so only one at a time may switch it.

    It is kept on the model and on its attention modules, so a model has one switch however it is reached.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0  # `use` blocks that are open
        self._plain = "sdpa"  # the model's own implementation, while `use` blocks are open
        self.call = _ThreadCall()

    @staticmethod
    def of(model: PreTrainedModel) -> AttentionSwitch:
        """The switch of this model, made on first use."""
        with _making:
            if _ATTRIBUTE not in vars(model):
                register_prefix_attention()
                switch = AttentionSwitch()
                for module in (model, *model.modules()):
                    if module is model or hasattr(module, "layer_idx"):
                        vars(module)[_ATTRIBUTE] = switch
        return vars(model)[_ATTRIBUTE]

    def name(self, model: PreTrainedModel) -> str:
        """The implementation that the model has outside of `use`."""
        return self._plain if self._depth else attention_name(model)

    @contextlib.contextmanager
    def use(self, model: PreTrainedModel, attention: AttentionFunction | str) -> Iterator[None]:
        """Give the model another of Transformers' implementations, or this thread's calls another function.

        Other threads that want to switch wait until the block ends.
        """
        with self._lock:
            before, function_before = attention_name(model), self.call.function
            if self._depth == 0:
                self._plain = before
            self._depth += 1
            if not isinstance(attention, str):
                self.call.function = attention
                attention = IMPLEMENTATION
            model.set_attn_implementation(attention)
            try:
                yield
            finally:
                model.set_attn_implementation(before)
                self.call.function = function_before
                self._depth -= 1

    def plain_function(self, module: nn.Module) -> AttentionFunction:
        """The function that the model's own implementation would call."""
        return attention_function(module, self._plain)

    def __reduce__(self) -> tuple[type[AttentionSwitch], tuple[()]]:
        """A copied model gets a switch of its own: locks and thread-local values cannot be copied."""
        return AttentionSwitch, ()


def _dispatch(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: object
) -> object:
    """[B, L, H, D], as Transformers' attention functions."""
    switch: AttentionSwitch = vars(module)[_ATTRIBUTE]
    function = switch.call.function or switch.plain_function(module)
    return function(module, query, key, value, mask, **options)
