"""The two halves of an encoder–decoder: a text's embeddings to encoder states, these and an answer to hidden states.

Both run with the model's own masks and positions. The encoder of a model takes no cache, though its attention would use
one: a hook on each attention passes it the cache that comes with the call. A call without a cache is the model's own,
and a layer that gradient checkpointing runs twice gets the same cache twice.

Shapes: B rows, E encoder tokens, T decoder tokens, H width of the embeddings, D width of the encoder's states.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property, partial
from typing import cast, final

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from softprompt.errors import FOREIGN_ERRORS
from softprompt.models.placement import home_device
from softprompt.models.transformers_compat import CACHE_ARGUMENT, text_config, text_decoder, text_encoder, update_cache

_OPTION = "softprompt_cache"  # travels through the encoder's **kwargs to its attention
_TRIAL_IDS = (3, 10, 17)


@final
class EncoderDecoder:
    """Encoder and decoder of a loaded model.

    Attributes:
        encoder: reads the text.
        body: the module that is called for the decoder's hidden states: the decoder, or the model without its head
            (FSMT, whose decoder takes masks of its own kind).
        pads: whether the encoder treats a padded text as the text alone: not if it chooses its attention by length.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.encoder = text_encoder(model)
        decoder = text_decoder(model)
        decoder = cast("PreTrainedModel", getattr(decoder, "base_model", decoder))
        self._is_whole = "encoder_attention_mask" not in inspect.signature(type(decoder).forward).parameters
        self.body = cast("PreTrainedModel", model.base_model) if self._is_whole else decoder
        self._own_kind: str | None = getattr(model.config, "attention_type", None)
        self.pads = not hasattr(self.encoder, "set_attention_type")
        self._is_open = False

    @cached_property
    def width(self) -> int:
        """Width of the decoder's final hidden states."""
        config = writing_config(self._model.config)
        return int(getattr(config, "d_model", None) or config.hidden_size)

    @cached_property
    def encoder_width(self) -> int:
        """D, the width of the encoder's states."""
        config = reading_config(self._model.config)
        return int(getattr(config, "d_model", None) or config.hidden_size)

    @cached_property
    def embedding_scale(self) -> float:
        """Factor between the table of embeddings and the embeddings that the encoder takes.

        Pegasus and Marian multiply by √H what they look up, and nothing that they are given. Others do it to both.
        """
        ids_BE = torch.tensor([_TRIAL_IDS], device=home_device(self._model))
        with torch.no_grad():
            try:
                wanted = self.encoder(input_ids=ids_BE).last_hidden_state
                embeds = self._model.get_input_embeddings()(ids_BE)
                scales = (1.0, embeds.shape[-1] ** 0.5)
                ones = torch.ones_like(ids_BE)
                off = [(self.encode(embeds * scale, ones) - wanted).norm() for scale in scales]
            except FOREIGN_ERRORS:  # takes no embeddings, which `prefix.verify` says
                return 1.0
        return scales[1] if off[1] < off[0] else 1.0

    def encode(self, embeds_BEH: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """Final hidden states [B, E, D] of the encoder.

        Args:
            mask: 1 [B, E] for tokens and 0 for padding, or an additive mask [B, 1, E, keys].
            cache: gets the keys and values of every layer, and gives those that the layer attends to.
        """
        self._restore_kind()
        options: dict[str, object] = {}
        if cache is not None:
            self._hook()
            options[_OPTION] = cache
        out = self.encoder(input_ids=None, inputs_embeds=embeds_BEH, attention_mask=mask, **options)
        return out.last_hidden_state.to(embeds_BEH.device)

    def decode(
        self,
        ids_BT: Tensor,
        states_BED: Tensor,
        mask: Tensor,
        cache: Cache | None = None,
        own_mask: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, ·] of an answer's ids, each after the ids before it.

        Args:
            states_BED: the encoder's states of the text.
            mask: 1 [B, E] for tokens of the text and 0 for padding, or an additive mask [B, 1, 1, keys].
            cache: keys and values of the decoder and of its cross-attention; None if nothing is kept.
            own_mask: additive mask [B, 1, T, keys] of the decoder's self-attention; by the model's own rules if None.
        """
        options: dict[str, object] = {"use_cache": cache is not None}
        if cache is not None:
            options[CACHE_ARGUMENT] = cache
        if self._is_whole:
            options |= {"decoder_input_ids": ids_BT, "decoder_attention_mask": own_mask, "attention_mask": mask}
            options["input_ids"] = ids_BT  # not read again, but without any the decoder would not be causal
            options["encoder_outputs"] = BaseModelOutput(last_hidden_state=cast("torch.FloatTensor", states_BED))
        else:
            options |= {"input_ids": ids_BT, "attention_mask": own_mask, "encoder_attention_mask": mask}
            options["encoder_hidden_states"] = self._projected(states_BED)
        out = self.body(**options)
        next_tokens = getattr(out, "last_hidden_state_ngram", None)  # ProphetNet: further streams predict later tokens
        states = out.last_hidden_state if next_tokens is None else next_tokens[:, : ids_BT.shape[1]]
        return states.to(ids_BT.device)

    def _projected(self, states_BED: Tensor) -> Tensor:
        """The encoder's states in the decoder's width, of two models that were joined (`EncoderDecoderModel`)."""
        projection = getattr(self._model, "enc_to_dec_proj", None)
        return states_BED if projection is None else projection(states_BED)

    def _restore_kind(self) -> None:
        """Let the encoder choose its attention by this text's length, not by that of an earlier one (BigBird)."""
        if not self.pads and self._own_kind is not None:
            choose = cast("Callable[[str], None]", self.encoder.set_attention_type)
            choose(self._own_kind)

    def _hook(self) -> None:
        """Let the encoder's attention take a cache; once. A second hook on the same attention changes nothing."""
        if self._is_open:
            return
        numbered = [module for module in self.encoder.modules() if hasattr(module, "layer_idx")]
        inner = [module for module in numbered if not any(hasattr(child, "layer_idx") for child in module.children())]
        for number, module in enumerate(inner):
            known: object = getattr(module, "layer_idx", None)
            module.register_forward_pre_hook(partial(_pass_cache, number if known is None else None), with_kwargs=True)
        self._is_open = True


def reading_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the part that reads text: the encoder's own, where an encoder–decoder has one."""
    encoder = getattr(config, "encoder", None) if config.is_encoder_decoder else config
    if isinstance(encoder, PreTrainedConfig):
        return text_config(encoder)
    return config


def writing_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of an encoder–decoder's decoder: its own, where it has one."""
    decoder = getattr(config, "decoder", None)
    return text_config(decoder) if isinstance(decoder, PreTrainedConfig) else config


@final
class _OneLayer(Cache):
    """A cache for the attention of one layer that does not know its own number (Pegasus)."""

    def __init__(self, cache: Cache, number: int) -> None:
        super().__init__(layers=[])
        self._cache, self._number = cache, number

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        return update_cache(self._cache, key_states, value_states, self._number)


def _pass_cache(
    number: int | None, _: nn.Module, args: object, kwargs: dict[str, object]
) -> tuple[object, dict[str, object]]:
    """Put the cache that travels with the call where the attention takes it."""
    cache = kwargs.pop(_OPTION, None)
    if not isinstance(cache, Cache):
        return args, kwargs
    return args, kwargs | {CACHE_ARGUMENT: cache if number is None else _OneLayer(cache, number)}
