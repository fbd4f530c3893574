"""One forward pass of an encoder or of its decoder, with explicit masks and with keys and values before the tokens.

T5's decoder takes a cache. Its encoder drops the one it gets, though its attention would use it. So a hook on each
encoder attention passes it the cache that comes with the call. Nothing is kept between calls, a call without a cache is
the model's own, and a layer that gradient checkpointing runs twice gets the same cache twice.

Shapes: B rows, E encoder tokens, T decoder tokens, S slots of a prefix, H width.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.forward import additive
from softprompt.prefix.runtime import PrefixRuntime

_OPTION = "softprompt_cache"  # travels through the encoder's **kwargs to its attention


def run_encoder(lm: FrozenLM, embeds_BEH: Tensor, visible_BK: Tensor, cache: Cache) -> Tensor:
    """Final hidden states [B, E, H].

    Args:
        visible_BK: True for each key, those of the cache first, that all of the row's tokens attend to.
        cache: holds the prefix's keys and values of each layer.
    """
    encoder = lm.hf_model.get_encoder()
    _open(PrefixRuntime.of(lm), encoder)
    mask = additive(visible_BK[:, None, :], lm.dtype)
    states = encoder(inputs_embeds=embeds_BEH, attention_mask=mask, **{_OPTION: cache}).last_hidden_state
    return states.to(embeds_BEH.device)


def run_decoder(
    lm: FrozenLM,
    ids_BT: Tensor,
    visible_BTK: Tensor,
    states_BEH: Tensor,
    crossing_BK: Tensor,
    cache: EncoderDecoderCache,
) -> Tensor:
    """Final hidden states [B, T, H].

    Args:
        visible_BTK: True where a token may attend to a key of the decoder, those of the cache first.
        states_BEH: the encoder's final hidden states of the text.
        crossing_BK: True for each key of the cross-attention, those of its prefix first, that the row attends to.
        cache: holds the prefixes of self-attention and cross-attention.
    """
    decoder = lm.hf_model.get_decoder()
    out = decoder(
        input_ids=ids_BT,
        attention_mask=additive(visible_BTK, lm.dtype),
        encoder_hidden_states=states_BEH,
        encoder_attention_mask=additive(crossing_BK[:, None, :], lm.dtype),
        past_key_values=cache,
        use_cache=True,
    )
    return out.last_hidden_state.to(ids_BT.device)


def _open(runtime: PrefixRuntime, encoder: nn.Module) -> None:
    """Let the encoder's attention take a cache; once. A second hook on the same attention changes nothing."""
    if not runtime.encoder_is_open:
        for module in encoder.modules():
            if hasattr(module, "layer_idx"):
                module.register_forward_pre_hook(_pass_cache, with_kwargs=True)
        runtime.encoder_is_open = True


def _pass_cache(_: nn.Module, args: object, kwargs: dict[str, object]) -> tuple[object, dict[str, object]]:
    cache = kwargs.pop(_OPTION, None)
    return args, kwargs if cache is None else kwargs | {"past_key_values": cache}
