# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The border to Transformers and torch: private names, and typed calls of functions that they leave untyped.

Here are all private names that `models` and `prefix` rely on; the engine's are in `engine.transformers_compat`. They
are those of Transformers 5.10 to 5.x (see `pyproject.toml`). A test fails with the name if a release drops one.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import FloatTensor, Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoTokenizer,
    Cache,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.quantizers.base import get_keys_to_not_convert

from softprompt.errors import FOREIGN_ERRORS, UnsupportedModelError

# By which attention, models and their outputs name the cache: "cache" from Transformers 5.24 on.
CACHE_ARGUMENT = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
AttentionFunction = Callable[..., Any]  # (module, query, key, value, attention_mask, **options) -> (output, weights)


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the language model: the config itself, or a part of it where there are towers."""
    return config.get_text_config()


def read_config(path: str, *, trust_remote_code: bool, local_files_only: bool) -> PreTrainedConfig:
    """A model's config.json. Raises what Transformers raises."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=local_files_only)
    return cast("PreTrainedConfig", config)


def read_tokenizer(path: str, *, trust_remote_code: bool, local_files_only: bool) -> PreTrainedTokenizerBase:
    """A model's tokenizer. Raises what Transformers raises."""
    options = {"trust_remote_code": trust_remote_code, "local_files_only": local_files_only}
    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path, **options))


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text without added special tokens."""
    return tokenizer.encode(text, add_special_tokens=False)


def text_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The decoder that the model names, or the model itself."""
    return cast("PreTrainedModel", model.get_decoder())


def text_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder of an encoder–decoder, or the model itself."""
    return cast("PreTrainedModel", model.get_encoder())


def encoder_and_decoder(model: PreTrainedModel) -> list[nn.Module]:
    """The two parts of an encoder–decoder."""
    return [cast("nn.Module", model.get_encoder()), cast("nn.Module", model.get_decoder())]


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every module inside the model by its dotted path, the model itself as ""."""
    return dict(model.named_modules())


def output_embedding(model: PreTrainedModel) -> nn.Module | None:
    """The matrix from hidden states to logits, if the model has one."""
    return cast("nn.Module | None", model.get_output_embeddings())


def plain_by_default(model: PreTrainedModel) -> list[str]:
    """Modules that Transformers does not quantize: the head, what is tied to it, and the last one."""
    return [str(name) for name in get_keys_to_not_convert(model)]


def has_state_layers(config: PreTrainedConfig) -> bool:
    """Whether Transformers' cache for this config holds recurrent or convolution states."""
    try:
        layers = DynamicCache(config=config).layers
    except FOREIGN_ERRORS:  # configs that no cache can be made for
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def layer_states(layer: object) -> dict[str, Tensor]:
    """The convolution and recurrent states [B, …] in a layer of a model's cache, as "conv.j" and "recurrent.j"."""
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return {}
    kinds = {"conv": layer.conv_states, "recurrent": layer.recurrent_states}
    return {f"{kind}.{j}": state for kind, held in kinds.items() for j, state in held.items() if state is not None}


def update_cache(cache: Cache, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Append keys [B, K, L, D] and values to a layer of a cache; returns all that the layer then attends to."""
    return cache.update(keys, values, layer)


def with_parts(model: PreTrainedModel, parts: Mapping[str, nn.Module]) -> PreTrainedModel:
    """A shallow copy of the model with other direct parts. It shares everything else with the model.

    Accelerate's hook on a model that is split over devices would call the model itself; the copy's parts keep theirs.
    """
    made = copy.copy(model)
    if vars(made).pop("_hf_hook", None) is not None:
        del vars(made)["forward"], vars(made)["_old_forward"]
    vars(made)["_modules"] = {**model._modules, **parts}
    return made


def attention_name(model: PreTrainedModel) -> str:
    """The attention implementation that the model uses: "eager", "sdpa", …"""
    return str(model.config._attn_implementation)


def can_switch_attention(model: PreTrainedModel) -> bool:
    """Whether `set_attn_implementation` has an effect on this kind of model."""
    return type(model)._can_set_attn_implementation()


def attention_function(module: nn.Module, name: str) -> AttentionFunction:
    """The function that Transformers calls for this attention module under an implementation's name.

    Raises UnsupportedModelError for "eager" if the model's file defines no such function.
    """
    function = AttentionInterface().get(name) or getattr(
        sys.modules[type(module).__module__], "eager_attention_forward", None
    )
    if function is None:
        raise UnsupportedModelError(f"the {name} attention of {type(module).__name__} is not a function of its module")
    return cast("AttentionFunction", function)


def states_with_cache(states_BLH: Tensor, cache: Cache | None) -> BaseModelOutputWithPast:
    """What a decoder returns."""
    output = BaseModelOutputWithPast(last_hidden_state=cast("FloatTensor", states_BLH))
    if cache is not None:
        output[CACHE_ARGUMENT] = cache
    return output


def logits_with_cache(loss: Tensor | None, logits_BKV: Tensor, cache: object) -> CausalLMOutputWithPast:
    """What a causal language model returns."""
    output = CausalLMOutputWithPast(loss=cast("FloatTensor", loss), logits=cast("FloatTensor", logits_BKV))
    if cache is not None:
        output[CACHE_ARGUMENT] = cache
    return output


def cache_of(output: Mapping[str, object]) -> object:
    """The cache that a model returned, or None."""
    return output.get(CACHE_ARGUMENT)
