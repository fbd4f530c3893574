"""PEFT's flat rows of keys and values, cut into layers and back.

A row [2·N·K·D] holds of one virtual token N pairs of keys and values. In a causal model pair i is that of layer i.

For an encoder–decoder PEFT (0.21, `get_prompt`) writes the pairs twice in a row and gives each layer of the decoder two
of them, the second of which it drops again. So layer i of the decoder gets pair 2·i mod N: with N = L, as PEFT chooses,
only every second pair is used where L is even, by two layers each. With N = 2·L each layer has a pair of its own, and
PEFT fills L further layers of its cache, which the model never reads: so any prompt of the decoder is written here.

Shapes: P virtual tokens, L layers with a prefix, N pairs, K key/value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softprompt.errors import GeometryError
from softprompt.interchange.base import shown_path, usable
from softprompt.models.geometry import Geometry, LayerShape
from softprompt.prompts.base import LayerKV, SoftPrompt
from softprompt.prompts.kv_prompt import KVPrompt

_SITE = "decoder"  # of an encoder–decoder: where PEFT puts keys and values


def from_flat(table: Tensor, geometry: Geometry, where: object) -> KVPrompt:
    """A KV prompt from PEFT's [P, 2·N·K·D]. Raises GeometryError if the base model has other layers or heads."""
    shape, places = the_shape(geometry), _places(geometry)
    width = 2 * shape.kv_heads * shape.key_dim
    pairs = table.shape[-1] // width
    fits = pairs >= len(places) if geometry.sites else pairs == len(places)
    if table.ndim != 2 or table.shape[1] != pairs * width or not fits or not table.is_floating_point():
        least = "at least " if geometry.sites else ""
        expected = (
            f"[P, 2·{len(places)}·{shape.kv_heads}·{shape.key_dim} = {len(places) * width}], {least}one pair a layer:"
            " layers, kv heads, head size"
        )
        raise GeometryError(
            f"the prefix does not fit {geometry.base}", where=where, expected=expected, got=shown_path(table)
        )
    parts = usable(table).view(len(table), pairs, 2, shape.kv_heads, shape.key_dim).permute(1, 2, 3, 0, 4)
    layers: list[LayerKV | None] = [None] * len(geometry.layers)
    for i, place in enumerate(places):
        pair = parts[2 * i % pairs if geometry.sites else i]
        layers[place] = (pair[0].contiguous(), pair[1].contiguous())
    return KVPrompt(tuple(layers))


def to_flat(prompt: SoftPrompt, geometry: Geometry) -> Tensor:
    """PEFT's [P, 2·N·K·D] of a KV prompt; `from_flat` is its inverse.

    Raises GeometryError for keys and values where PEFT has none.
    """
    the_shape(geometry)
    kept, places = prompt.keys_values() or (), _places(geometry)
    if odd := sorted({geometry.sites[i] for i, kv in enumerate(kept) if kv is not None and i not in places}):
        raise GeometryError(
            "PEFT puts keys and values before the decoder's own alone, and this prompt has others",
            where=geometry.base,
            expected=_SITE,
            got=", ".join(odd),
            hint="train it with --method.sites decoder, or export an embedding prompt",
        )
    pairs = [torch.stack(kv) for kv in (kept[place] for place in places) if kv is not None]
    if geometry.sites:  # after each pair of a layer one that PEFT drops
        pairs = [pair for own in pairs for pair in (own, torch.zeros_like(own))]
    return torch.stack(pairs).permute(3, 0, 1, 2, 4).reshape(prompt.n_tokens, -1)


def layer_count(geometry: Geometry) -> int:
    """N, PEFT's `num_layers`, of what `to_flat` writes."""
    return len(_places(geometry)) * (2 if geometry.sites else 1)


def the_shape(geometry: Geometry) -> LayerShape:
    """The one shape of all layers with a prefix, with keys as wide as values. Raises GeometryError if they differ."""
    shapes = {geometry.layers[place] for place in _places(geometry)}
    shape = next(iter(shapes))
    if len(shapes) != 1 or shape is None or shape.key_dim != shape.value_dim:
        raise GeometryError(
            "PEFT keeps keys and values of one shape for all layers, which this base model does not have",
            where=geometry.base,
            got=", ".join(sorted(str(layer) for layer in shapes))[:200],
            hint="an embedding prompt can be exchanged",
        )
    return shape


def _places(geometry: Geometry) -> list[int]:
    """The indices of the layers that get a prefix."""
    return [i for i in range(len(geometry.layers)) if not geometry.sites or geometry.sites[i] == _SITE]
