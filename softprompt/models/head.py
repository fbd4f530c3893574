"""The head of a language model: logits of final hidden states by the family's own rule.

Most families multiply by the output embedding alone. Others scale or cap the logits (Cohere, Granite, Gemma), scale the
hidden states first (MiniCPM, T5), add a bias (BART, Marian), or run further layers (BERT as a decoder). The rule is the
rest of the model's own `forward`: it runs on a shallow copy of the model whose backbone returns the hidden states that
it gets as embeddings. The copy shares all weights with the model, which stays as it is.

Shapes: N positions, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from softprompt.errors import FOREIGN_ERRORS, UnsupportedModelError, first_line
from softprompt.models.backbone import Backbone
from softprompt.models.encoder_decoder import EncoderDecoder
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
    makers: list[Callable[[], Head]] = [partial(_ModelHead, model, backbone)]
    if output_embedding(model) is not None:
        makers.insert(0, partial(_ProjectionHead, model))

    def states_and_logits() -> tuple[Tensor, Tensor]:
        return backbone.run(ids_BL=ids_BL)[0], model(input_ids=ids_BL, use_cache=False).logits[0]

    return _first_right(model, makers, states_and_logits)


@torch.no_grad()
def encoder_decoder_head(model: PreTrainedModel, halves: EncoderDecoder) -> Head:
    """The head of an encoder–decoder: a product with the output embedding, of states that T5 and umT5 shrink first, or
    the model's own; the first that gives the model's logits on a few tokens.

    Raises UnsupportedModelError if none does.
    """
    ids_BL = torch.arange(_TRIAL_TOKENS, device=home_device(model))[None]

    def states_and_logits() -> tuple[Tensor, Tensor]:
        states_BED = halves.encoder(input_ids=ids_BL).last_hidden_state
        hidden = halves.decode(ids_BL, states_BED, torch.ones_like(ids_BL))[0]
        return hidden, model(input_ids=ids_BL, decoder_input_ids=ids_BL, use_cache=False).logits[0]

    makers: list[Callable[[], Head]] = [partial(_AnswerHead, model, halves), partial(_Logits, model)]
    if output_embedding(model) is not None:
        shrunk = partial(_ProjectionHead, model, halves.width**-0.5)
        makers = [partial(_ProjectionHead, model), shrunk, *makers]
    return _first_right(model, makers, states_and_logits)


def _first_right(
    model: PreTrainedModel, makers: Sequence[Callable[[], Head]], truth: Callable[[], tuple[Tensor, Tensor]]
) -> Head:
    """The first head that gives the model's own logits.

    Args:
        truth: returns hidden states [N, H] and the model's logits [N, V] of them.

    Raises UnsupportedModelError if none does.
    """
    reason = "no output embedding"
    for make in makers:
        try:
            head = make()
            hidden_NH, wanted_NV = truth()
            ours_NV = head(hidden_NH).to(wanted_NV.device)
            off = _norm(ours_NV - wanted_NV) / max(_norm(wanted_NV), 1e-6)
        except (*FOREIGN_ERRORS, UnsupportedModelError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            continue
        if off <= _TOLERANCE.get(model.dtype, _HALF_TOLERANCE):
            return head
        reason = f"its logits are off by {off:.1%}"
    raise UnsupportedModelError("the model's head cannot be run without its layers", got=reason)


def _norm(tensor: Tensor) -> float:
    return tensor.float().square().sum().sqrt().item()


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


class _AnswerHead:
    """An encoder–decoder's own `forward` without its decoder."""

    def __init__(self, model: PreTrainedModel, halves: EncoderDecoder) -> None:
        self._model = _without(model, halves.body)
        self._states = torch.zeros(1, 1, halves.encoder_width, device=home_device(model), dtype=model.dtype)

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V]."""
        states = BaseModelOutput(last_hidden_state=cast("torch.FloatTensor", self._states))
        out = self._model(encoder_outputs=states, decoder_inputs_embeds=hidden_NH[None], use_cache=False)
        return out.logits[0]


class _Logits:
    """The head of a model whose decoder returns logits in place of hidden states (FSMT)."""

    def __init__(self, model: PreTrainedModel) -> None: ...

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """The same."""
        return hidden_NH


def _without(model: PreTrainedModel, part: nn.Module) -> PreTrainedModel:
    """A shallow copy of the model in which a module, at any depth, returns its input embeddings.

    Raises UnsupportedModelError if the module is not inside the model.
    """
    for name, child in model.named_children():
        if child is part:
            return with_parts(model, {name: _Through(child)})
        if any(module is part for module in child.modules()):
            return with_parts(model, {name: _without(cast("PreTrainedModel", child), part)})
    raise UnsupportedModelError("the model's head is not separate from its layers", got=type(model).__name__)


class _Through(nn.Module):
    """In place of a backbone: returns its input embeddings as final hidden states. Has the backbone's attributes."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.__dict__["_backbone"] = backbone  # not a part of this module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_backbone"], name)

    def forward(
        self,
        *args: object,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        **options: object,
    ) -> _States:
        states = inputs_embeds if decoder_inputs_embeds is None else decoder_inputs_embeds
        assert states is not None, "called with embeddings alone"
        return _States((states,))


class _States(tuple[Tensor, ...]):
    """A backbone's output with nothing but final hidden states, by index and by name."""

    def __getattr__(self, name: str) -> Tensor | None:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None
