"""A form of soft prompts in one file, as docs/guides/extending.md shows it: low-rank keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from softprompt.models.geometry import Geometry, LayerShape
from softprompt.prompts.base import Shape, SoftPrompt
from softprompt.prompts.kv_prompt import KVPrompt


def columns(layers: tuple[LayerShape | None, ...]) -> int:
    return sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in layers if layer is not None)


@dataclass(frozen=True, eq=False)
class LowRankPrompt(SoftPrompt):
    """`tokens` [P, r] @ `basis` [r, C]: the keys and values of all layers, of any rank r."""

    tokens: Tensor
    basis: Tensor
    layers: tuple[LayerShape | None, ...]

    form: ClassVar[str] = "low-rank"
    begins_the_sequence: ClassVar[bool] = True

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def tensors(self) -> dict[str, Tensor]:
        return {"tokens": self.tokens, "basis": self.basis}

    @classmethod
    def expected_shapes(
        cls, geometry: Geometry, n_tokens: int, stored: Mapping[str, Shape] | None = None
    ) -> dict[str, Shape]:
        rank = (stored or {}).get("tokens", (n_tokens, 2))[-1]
        return {"tokens": (n_tokens, rank), "basis": (rank, columns(geometry.layers))}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], geometry: Geometry) -> LowRankPrompt:
        return cls(tensors["tokens"], tensors["basis"], geometry.layers)

    def replace_tensors(self, tensors: Mapping[str, Tensor]) -> LowRankPrompt:
        return LowRankPrompt(tensors["tokens"], tensors["basis"], self.layers)

    def materialize(self) -> KVPrompt:
        def empty(heads: int, size: int) -> Tensor:
            return torch.empty(heads, self.n_tokens, size, device="meta")

        like = (
            layer and (empty(layer.kv_heads, layer.key_dim), empty(layer.kv_heads, layer.value_dim))
            for layer in self.layers
        )
        return KVPrompt(tuple(like)).from_matrix(self.tokens @ self.basis)
