"""Measures the `Geometry` of a loaded model, from a forward pass of one token and some sampled weights."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedConfig, PreTrainedModel

from softprompt.errors import FOREIGN_ERRORS
from softprompt.models.backbone import Backbone
from softprompt.models.encoder_decoder import EncoderDecoder, reading_config, writing_config
from softprompt.models.geometry import Geometry, LayerShape, Sample, StateShape
from softprompt.models.placement import home_device
from softprompt.models.transformers_compat import layer_states, text_config
from softprompt.models.weights import ModelWeights


@torch.no_grad()
def measure_geometry(model: PreTrainedModel, name: str) -> Geometry:
    """Run one token and read the shapes of the keys and values that each layer leaves in the cache."""
    config = model.config if model.config.is_encoder_decoder else text_config(model.config)
    embedding: Any = model.get_input_embeddings()
    table: Tensor = embedding.weight
    sites, states = tuple[str, ...](), tuple[tuple[StateShape, ...], ...]()
    if config.is_encoder_decoder:
        shapes, sites = _encoder_decoder_layers(model)
    else:
        shapes, states = _causal_layers(model)
    weights = ModelWeights(model, model.base_model, embedding)
    return Geometry(
        base=name,
        architecture=config.model_type,
        hidden=table.shape[1],
        vocab=table.shape[0],
        layers=tuple(shapes),
        windows=(None,) * len(shapes) if sites else _windows(config),
        max_positions=context_of(reading_config(config)),
        sample=_whole(weights.sample(len(table))),
        matrices=_whole(weights.matrices(len(table))),
        sites=sites,
        states=states,
        n_heads=_query_heads(reading_config(config), shapes),
        weights=weights,
    )


def _whole(sample: Sample) -> tuple[float, ...]:
    return tuple(weight for weight in sample if weight is not None)


def _query_heads(config: Any, shapes: Sequence[LayerShape | None]) -> int:
    """The config's number of attention heads; of a model that names none, the heads of its keys."""
    try:
        heads = getattr(config, "num_attention_heads", None)
    except FOREIGN_ERRORS:  # it may vary across layers
        heads = None
    return heads if isinstance(heads, int) else max((shape.kv_heads for shape in shapes if shape), default=0)


def _causal_layers(model: PreTrainedModel) -> tuple[list[LayerShape | None], tuple[tuple[StateShape, ...], ...]]:
    """The shape of the keys and values that each layer leaves in the cache, None for a layer without any; and of its
    states, nothing at all if no layer has any.

    A model that cannot be run with a cache has none: it works with embedding prompts alone.
    """
    backbone = Backbone(model)
    depth: int = getattr(backbone.config, "num_hidden_layers", 0)
    token = torch.zeros(1, 1, dtype=torch.long, device=home_device(model))
    for new_cache in (DynamicCache, backbone.new_cache):  # a hybrid needs the kinds of its layers
        try:
            cache = new_cache()
            backbone.run(ids_BL=token, cache=cache)
            states = tuple(_states(layer) for layer in cache.layers[:depth])
            return _shapes(cache, depth), states if any(states) else ()
        except FOREIGN_ERRORS:
            continue
    return [None] * depth, ()


def _encoder_decoder_layers(model: PreTrainedModel) -> tuple[list[LayerShape | None], tuple[str, ...]]:
    """The encoder's layers, the decoder's, and its cross-attentions; and the site of each.

    A layer whose attention uses no cache has no shape: keys and values cannot stand before it.
    """
    halves = EncoderDecoder(model)
    kept, cross = DynamicCache(), DynamicCache()
    token = torch.zeros(1, 1, dtype=torch.long, device=home_device(model))
    ones, read = torch.ones_like(token), DynamicCache()
    with contextlib.suppress(*FOREIGN_ERRORS):
        halves.encode(model.get_input_embeddings()(token), ones, read)
    with contextlib.suppress(*FOREIGN_ERRORS):
        states_BED = halves.encoder(input_ids=token).last_hidden_state
        halves.decode(token, states_BED, ones, EncoderDecoderCache(kept, cross))
    height = _depth(read, reading_config(model.config), "encoder_layers", "num_encoder_layers")
    depth = _depth(kept, writing_config(model.config), "decoder_layers", "num_decoder_layers")
    sites = ("encoder",) * height + ("decoder",) * depth + ("cross",) * depth
    return [*_shapes(read, height), *_shapes(kept, depth), *_shapes(cross, depth)], sites


def _depth(cache: Cache, config: PreTrainedConfig, *names: str) -> int:
    """Number of layers: those in the cache, or else what the config says under one of these names."""
    named = (getattr(config, name, None) for name in (*names, "num_hidden_layers"))
    return len(cache.layers) or next((number for number in named if isinstance(number, int)), 0)


def _states(layer: object) -> tuple[StateShape, ...]:
    return tuple((name, tuple(state.shape[1:])) for name, state in layer_states(layer).items())


def _shapes(cache: Cache, layers: int) -> list[LayerShape | None]:
    shapes: list[LayerShape | None] = [None] * layers
    for i, layer in enumerate(cache.layers[:layers]):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is not None and values is not None and keys.numel() > 0:
            shapes[i] = LayerShape(keys.shape[1], keys.shape[3], values.shape[3])
    return shapes


def context_of(config: Any) -> int:
    """The context in tokens.

    "longrope" changes every frequency for calls beyond the original context, so a prefix that is run by itself would
    differ from the same prefix before a long row. Only the original context is exact.
    """
    names = ("max_encoder_position_embeddings", "max_position_embeddings")
    most = next((int(most) for most in (getattr(config, name, None) for name in names) if most), 2**31)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    for part in [rope] if "rope_type" in rope else [kind for kind in rope.values() if hasattr(kind, "get")]:
        if part.get("rope_type") == "longrope":
            original = part.get("original_max_position_embeddings")
            most = min(most, int(original or getattr(config, "original_max_position_embeddings", None) or most))
    return most


def answer_context_of(config: Any) -> int:
    """The most tokens of an encoder–decoder's decoder, from its config."""
    return int(getattr(config, "max_decoder_position_embeddings", None) or context_of(config))


def _windows(config: Any) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # Mistral, Phi-3: one window for all layers or none
        return (window,) * getattr(config, "num_hidden_layers", 0)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
