"""Soft prompts of keys and values in every layer (Li & Liang 2021, prefix tuning).

Shapes: P virtual tokens, K key/value heads, D head size, C columns of `matrix`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from softprompt.errors import PromptError
from softprompt.models.geometry import Geometry
from softprompt.prompts.base import LayerKV, LayerState, Shape, SoftPrompt


@final
@dataclass(frozen=True, eq=False)
class KVPrompt(SoftPrompt):
    """Per layer (keys [K, P, D], values [K, P, D']), or None for a layer without keys and values.

    Keys are post-RoPE at positions 0…P-1; text starts at position P. The layers of an encoder–decoder are those of its
    encoder, then its decoder, then its cross-attention (`Geometry.sites`); a prompt may omit whole sites.
    """

    layers: tuple[LayerKV | None, ...]

    form: ClassVar[str] = "kv"
    begins_the_sequence: ClassVar[bool] = True

    @property
    def n_tokens(self) -> int:
        return next((layer[0].shape[1] for layer in self.layers if layer is not None), 0)

    def tensors(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            if layer is not None:
                named[f"layers.{i}.k"], named[f"layers.{i}.v"] = layer
        return named

    @classmethod
    def expected_shapes(
        cls, geometry: Geometry, n_tokens: int, stored: Mapping[str, Shape] | None = None
    ) -> dict[str, Shape]:
        """Every layer, or every layer of the sites that `stored` has a tensor of: a site is whole because all its
        layers share one attention mask."""
        omitted = set[str]() if stored is None else _omitted_sites(geometry, stored)
        shapes: dict[str, Shape] = {}
        for i, layer in enumerate(geometry.layers):
            if layer is not None and not (geometry.sites and geometry.sites[i] in omitted):
                shapes[f"layers.{i}.k"] = (layer.kv_heads, n_tokens, layer.key_dim)
                shapes[f"layers.{i}.v"] = (layer.kv_heads, n_tokens, layer.value_dim)
        return shapes

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], geometry: Geometry) -> KVPrompt:
        return _from_named(tensors, len(geometry.layers))

    def replace_tensors(self, tensors: Mapping[str, Tensor]) -> KVPrompt:
        return _from_named(tensors, len(self.layers))

    def materialize(self) -> KVPrompt:
        return self

    def input_embeddings(self) -> None:
        return None

    def keys_values(self) -> tuple[LayerKV | None, ...]:
        return self.layers

    def states(self) -> tuple[LayerState, ...]:
        return tuple({"keys": layer[0], "values": layer[1]} if layer else {} for layer in self.layers)

    def select(self, indices: Sequence[int]) -> KVPrompt:
        chosen = list(indices)
        return self.map(lambda tensor: tensor[:, chosen])

    def concatenate(self, others: Sequence[SoftPrompt]) -> KVPrompt:
        """Raises PromptError for a form without keys and values."""
        parts: list[KVPrompt] = []
        for other in others:
            layers = other.keys_values()
            if layers is None:
                raise PromptError("keys and values cannot be joined with an embedding prompt", got=other.form)
            parts.append(KVPrompt(layers))
        return self.zip_map(parts, lambda tensors: torch.cat(list(tensors), dim=1))

    def matrix(self) -> Tensor:
        """[P, C], C the sum of K·D over all keys and values: the heads of layer 0's keys, of its values, of layer 1's
        keys and so on."""
        return torch.cat([tensor.transpose(0, 1).flatten(1) for tensor in self.tensors().values()], dim=1)

    def from_matrix(self, matrix_PC: Tensor) -> KVPrompt:
        named = self.tensors()
        widths = [tensor.shape[0] * tensor.shape[2] for tensor in named.values()]
        parts = zip(named.items(), torch.split(matrix_PC, widths, dim=1), strict=True)
        shaped = {
            name: part.view(-1, tensor.shape[0], tensor.shape[2]).transpose(0, 1) for (name, tensor), part in parts
        }
        return self.replace_tensors(shaped)

    def similarity_vectors(self) -> list[Tensor]:
        """The values of every layer, all heads of a token as one vector; keys depend on their positions."""
        return [layer[1].transpose(0, 1).flatten(1) for layer in self.layers if layer is not None]


def _from_named(tensors: Mapping[str, Tensor], n_layers: int) -> KVPrompt:
    """Layers without tensors are None."""
    layers: list[LayerKV | None] = []
    for i in range(n_layers):
        present = f"layers.{i}.k" in tensors
        layers.append((tensors[f"layers.{i}.k"], tensors[f"layers.{i}.v"]) if present else None)
    return KVPrompt(tuple(layers))


def _omitted_sites(geometry: Geometry, stored: Mapping[str, Shape]) -> set[str]:
    """The sites without any of these tensors; none if every site lacks tensors."""
    used = {site for i, site in enumerate(geometry.sites) if stored.keys() & {f"layers.{i}.k", f"layers.{i}.v"}}
    return set(geometry.sites) - used if used else set()
