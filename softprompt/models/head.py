"""The head of a causal language model: logits of final hidden states by the family's own rule.

Most families multiply by the output embedding alone. Others scale or cap the logits (Cohere, Granite, Gemma), scale the
hidden states first (MiniCPM), or run further layers (BERT as a decoder). The rule is the rest of the model's own
`forward`: it runs on a shallow copy of the model whose backbone returns the hidden states that it gets as embeddings.
The copy shares all weights with the model, which stays as it is.

Shapes: N positions, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt.errors import FOREIGN_ERRORS, UnsupportedModelError, first_line
from softprompt.models.backbone import Backbone
from softprompt.models.placement import home_device
from softprompt.models.transformers_compat import output_embedding, text_config, with_parts

Head = Callable[[Tensor], Tensor]  # hidden states [N, H] to logits [N, V]

_TRIAL_TOKENS = 3
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}  # relative; half precision rounds in another order
_HALF_TOLERANCE = 1e-2


@torch.no_grad()
def head_of(model: PreTrainedModel, backbone: Backbone) -> Head:
    """The head of a causal model: a product with the output embedding if that is the whole rule, or else its own.

    The first that gives the logits of the model's whole forward pass on a few tokens is taken.

    Raises UnsupportedModelError if neither does.
    """
    ids_BL = torch.arange(_TRIAL_TOKENS, device=home_device(model))[None]
    reason = "no output embedding"
    makers: list[Callable[[], Head]] = [partial(_ModelHead, model, backbone)]
    if model.get_output_embeddings() is not None:
        makers.insert(0, partial(_ProjectionHead, model))
    for make in makers:
        try:
            head = make()
            wanted_NV = model(input_ids=ids_BL, use_cache=False).logits[0].float()
            ours_NV = head(backbone.run(ids_BL=ids_BL)[0]).float().to(wanted_NV.device)
            off = (ours_NV - wanted_NV).norm() / wanted_NV.norm().clamp_min(1e-6)
        except (*FOREIGN_ERRORS, UnsupportedModelError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            continue
        if off <= _TOLERANCE.get(model.dtype, _HALF_TOLERANCE):
            return head
        reason = f"its logits are off by {off:.1%}"
    raise UnsupportedModelError("the model's head cannot be run without its layers", got=reason)


def encoder_decoder_head(model: PreTrainedModel) -> Head:
    """The head of an encoder–decoder of the T5 family.

    The first T5 and umT5 shrink the states that their heads read; T5 1.1, FLAN-T5 and mT5 do not.
    """
    config = model.config
    shrinks = getattr(config, "scale_decoder_outputs", config.model_type == "umt5")
    return _ProjectionHead(model, config.d_model**-0.5 if shrinks else None)


class _ProjectionHead:
    """The product with the output embedding, with Gemma's soft cap if the config names one.

    Args:
        scale: factor of the hidden states, or None.
    """

    def __init__(self, model: PreTrainedModel, scale: float | None = None) -> None:
        self._model = model
        self._scale = scale
        self._cap: float | None = getattr(text_config(model.config), "final_logit_softcapping", None)

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V]."""
        projection = output_embedding(self._model)
        assert projection is not None, "checked when the head was chosen"
        logits_NV: Tensor = projection(hidden_NH if self._scale is None else hidden_NH * self._scale)
        return logits_NV if self._cap is None else self._cap * torch.tanh(logits_NV / self._cap)


class _ModelHead:
    """A causal model's own `forward` without its backbone.

    Raises UnsupportedModelError if the model has no backbone that could be left out.
    """

    def __init__(self, model: PreTrainedModel, backbone: Backbone) -> None:
        parts = {
            name: _Through(part)
            for name, part in model.named_children()
            if any(module is backbone.module for module in part.modules())
        }
        if not parts:
            raise UnsupportedModelError("the model's head is not separate from its layers", got=type(model).__name__)
        self._model = with_parts(model, parts)

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V]."""
        return self._model(inputs_embeds=hidden_NH[None], use_cache=False).logits[0]


class _Through(nn.Module):
    """In place of a backbone: returns its input embeddings as final hidden states. Has the backbone's attributes."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.__dict__["_backbone"] = backbone  # not a part of this module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_backbone"], name)

    def forward(self, *args: Any, inputs_embeds: Tensor, **options: Any) -> _States:
        return _States((inputs_embeds,))


class _States(tuple[Tensor, ...]):
    """A backbone's output with nothing but final hidden states, by index and by name."""

    def __getattr__(self, name: str) -> Tensor | None:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None
