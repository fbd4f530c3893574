"""Soft prompts of input embeddings (Lester et al. 2021, prompt tuning).

Shapes: P virtual tokens, H embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from softprompt.errors import PromptError
from softprompt.models.geometry import Geometry
from softprompt.prompts.base import Shape, SoftPrompt


@final
@dataclass(frozen=True, eq=False)
class EmbeddingPrompt(SoftPrompt):
    """`embeddings` [P, H], fed to the base model in place of token embeddings."""

    embeddings: Tensor

    form: ClassVar[str] = "embedding"
    begins_the_sequence: ClassVar[bool] = False

    @property
    def n_tokens(self) -> int:
        return self.embeddings.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        return {"embeddings": self.embeddings}

    @classmethod
    def expected_shapes(
        cls, geometry: Geometry, n_tokens: int, stored: Mapping[str, Shape] | None = None
    ) -> dict[str, Shape]:
        return {"embeddings": (n_tokens, geometry.hidden)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], geometry: Geometry) -> EmbeddingPrompt:
        return cls(tensors["embeddings"])

    def replace_tensors(self, tensors: Mapping[str, Tensor]) -> EmbeddingPrompt:
        return EmbeddingPrompt(tensors["embeddings"])

    def materialize(self) -> EmbeddingPrompt:
        return self

    def input_embeddings(self) -> Tensor:
        return self.embeddings

    def keys_values(self) -> None:
        return None

    def states(self) -> None:
        return None

    def select(self, indices: Sequence[int]) -> EmbeddingPrompt:
        return EmbeddingPrompt(self.embeddings[list(indices)])

    def concatenate(self, others: Sequence[SoftPrompt]) -> EmbeddingPrompt:
        """Raises PromptError for a form without input embeddings."""
        parts = [self.embeddings]
        for other in others:
            embeddings = other.input_embeddings()
            if embeddings is None:
                raise PromptError("an embedding prompt cannot be joined with keys and values", got=other.form)
            parts.append(embeddings)
        return EmbeddingPrompt(torch.cat(parts))

    def matrix(self) -> Tensor:
        return self.embeddings

    def from_matrix(self, matrix_PC: Tensor) -> EmbeddingPrompt:
        return EmbeddingPrompt(matrix_PC)

    def similarity_vectors(self) -> list[Tensor]:
        """The embeddings."""
        return [self.embeddings]
