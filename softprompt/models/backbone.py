"""The backbone of a causal language model: text as token ids or embeddings to final hidden states.

It is the model's text decoder. A model for images and text has it inside; towers for images and sound are left alone.

Some models look up a second embedding for every layer by token id (Gemma 3n and 4, "per-layer embeddings"). A virtual
token has no id. It gets the second embedding of the padding token, as these models give it to images and sound.

Shapes: B rows, L tokens, H width.
"""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any, cast, final

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel

from softprompt.models.placement import home_device
from softprompt.models.transformers_compat import CACHE_ARGUMENT, text_config, text_decoder

NO_ID = -1  # in place of a token id: a virtual token
_CACHE_ARGUMENTS = (CACHE_ARGUMENT, "cache_params")  # of attention and hybrids, of state-space models
_TRIAL_TOKENS = 2
_LIMITED = ("local", "chunked_attention")  # kinds of layers


@final
class Backbone:
    """The text decoder of a loaded model.

    Attributes:
        module: the decoder, a part of the model or the model's base.
        config: its config.
        cache_argument: the name by which it takes a cache, or None.
        takes_positions: whether it takes the position of each token.
        has_own_masks: whether layers limit attention by places in the cache (GPT-Neo, Llama 4).
        looks_up_ids: whether layers look up further embeddings by token id (Gemma 3n and 4).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.module = _text_decoder(model)
        self.config: PreTrainedConfig = text_config(model.config)
        accepted = inspect.signature(type(self.module).forward).parameters
        self.cache_argument = next((name for name in _CACHE_ARGUMENTS if name in accepted), None)
        self.takes_positions = "position_ids" in accepted
        kinds = (getattr(self.config, "layer_types", None), getattr(self.config, "attention_layers", None))
        self.has_own_masks = any(kind in _LIMITED for part in kinds for kind in part or ())
        self.looks_up_ids = bool(getattr(self.config, "hidden_size_per_layer_input", None)) and hasattr(
            self.module, "get_per_layer_inputs"
        )

    @cached_property
    def embedding_scale(self) -> float:
        """Factor between the table of embeddings and the embeddings that the model takes.

        Most models that scale embeddings do it to those that they are given, too. Falcon-H1 does it to token ids alone.
        """
        scale = getattr(self.config, "embedding_multiplier", 1.0)
        if scale == 1.0:
            return 1.0
        ids_BL = torch.arange(_TRIAL_TOKENS, device=home_device(self.module))[None]
        with torch.no_grad():
            wanted = self.run(ids_BL=ids_BL)
            embeds = self.module.get_input_embeddings()(ids_BL).to(ids_BL.device)
            plain, scaled = (self.run(embeds_BLH=embeds * factor) for factor in (1.0, scale))
        return scale if torch.dist(scaled, wanted) < torch.dist(plain, wanted) else 1.0

    def new_cache(self) -> Cache:
        """An empty cache of the kinds of layers that this model has."""
        return DynamicCache(config=self.config)

    def run(
        self,
        *,
        ids_BL: Tensor | None = None,
        embeds_BLH: Tensor | None = None,
        embedded_ids_BL: Tensor | None = None,
        cache: Cache | None = None,
        mask: Tensor | dict[str, Tensor] | None = None,
        positions_BL: Tensor | None = None,
        attentions: list[Tensor] | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, H], on the device of the tokens.

        Args:
            ids_BL, embeds_BLH: the tokens, one of the two.
            embedded_ids_BL: the ids of embedded tokens, `NO_ID` for virtual tokens; all are virtual if None.
            cache: holds what comes before the tokens, and takes them up.
            mask, positions_BL: by the model's own rules if None.
            attentions: filled with each layer's attention weights [B, heads, L, keys].
        """
        inputs: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            assert self.cache_argument is not None, "a model without a cache is run without one"
            inputs[self.cache_argument] = cache
        if ids_BL is not None:
            inputs["input_ids"] = ids_BL
        if embeds_BLH is not None:
            inputs["inputs_embeds"] = embeds_BLH
            inputs |= self._per_layer(embeds_BLH, embedded_ids_BL)
        if mask is not None:
            inputs["attention_mask"] = mask
        if positions_BL is not None:
            inputs["position_ids"] = positions_BL
        if attentions is not None:
            inputs["output_attentions"] = True
        out = self.module(**inputs)
        if attentions is not None:
            attentions += out.attentions
        given = embeds_BLH if ids_BL is None else ids_BL
        return out.last_hidden_state if given is None else out.last_hidden_state.to(given.device)

    def _per_layer(self, embeds_BLH: Tensor, ids_BL: Tensor | None) -> dict[str, Tensor]:
        """The second embeddings of embedded tokens, as the argument for them; nothing for a model without any."""
        if not self.looks_up_ids:
            return {}
        if ids_BL is None:
            ids_BL = torch.full(embeds_BLH.shape[:2], NO_ID, device=embeds_BLH.device)
        padding = self.config.pad_token_id
        ids_BL = ids_BL.where(ids_BL != NO_ID, padding if isinstance(padding, int) and padding >= 0 else 0)
        module: Any = self.module
        return {"per_layer_inputs": module.get_per_layer_inputs(ids_BL)}


def _text_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The model's base; of a model for images and text, or one that names no base, the decoder inside."""
    if text_config(model.config) is model.config and model.base_model is not model:
        return cast("PreTrainedModel", model.base_model)
    decoder = text_decoder(model)
    return cast("PreTrainedModel", decoder if decoder is not model else getattr(model, "model", model))
