"""The abstract soft prompt: everything that the rest of the package may ask of a form.

A new form is one file with a class that implements the abstract methods, registered with `forms.register_form`. All
other methods have defaults that first turn the prompt into one of the two plain forms (`materialize`).

Shapes: P virtual tokens, H embedding width, K key/value heads, D head size, C columns of `matrix`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from softprompt.models.geometry import Geometry

if TYPE_CHECKING:
    from softprompt.prompts.embedding_prompt import EmbeddingPrompt
    from softprompt.prompts.kv_prompt import KVPrompt

Shape = tuple[int, ...]
LayerKV = tuple[Tensor, Tensor]  # keys [K, P, D] and values [K, P, D'] of one layer
LayerState = Mapping[str, Tensor]  # what one layer carries, by name: "keys", "values", "conv.0", "recurrent.0", …


class SoftPrompt(ABC):
    """A soft prompt of any form: P virtual tokens for a frozen base model.

    Attributes:
        form: the name under which the form is registered and stored in cards.
        begins_the_sequence: whether the virtual tokens stand at positions 0…P-1. Nothing can stand before such a
            prompt, so BOS and lead are part of it; moving one of its tokens rotates that token's keys.
    """

    form: ClassVar[str]
    begins_the_sequence: ClassVar[bool]

    @property
    @abstractmethod
    def n_tokens(self) -> int:
        """P, the number of virtual tokens."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names under which they are stored."""

    @classmethod
    @abstractmethod
    def expected_shapes(
        cls, geometry: Geometry, n_tokens: int, stored: Mapping[str, Shape] | None = None
    ) -> dict[str, Shape]:
        """The tensor names and shapes of a prompt of `n_tokens` virtual tokens for this base model.

        Args:
            stored: names and shapes that a file or prompt has, for forms that leave a choice (a KV prompt may omit
                whole sites, a low-rank form chooses its rank); None for a full prompt.
        """

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], geometry: Geometry) -> Self:
        """The prompt with these tensors, named as in `tensors`. Not checked: see `forms.check_fits`."""

    @abstractmethod
    def replace_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """A prompt of the same structure with other tensors under the same names."""

    @abstractmethod
    def materialize(self) -> EmbeddingPrompt | KVPrompt:
        """The equivalent plain prompt, which the prefix runtime can run. Gradients flow through."""

    def input_embeddings(self) -> Tensor | None:
        """[P, H], fed to the base model like token embeddings; None for a form of keys and values."""
        return self.materialize().input_embeddings()

    def keys_values(self) -> tuple[LayerKV | None, ...] | None:
        """The keys and values of every layer; None for a form of input embeddings."""
        return self.materialize().keys_values()

    def states(self) -> tuple[LayerState, ...] | None:
        """Everything that each layer carries from the virtual tokens; None for a form of input embeddings."""
        return self.materialize().states()

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The prompt with `change` applied to every tensor."""
        return self.replace_tensors({name: change(tensor) for name, tensor in self.tensors().items()})

    def zip_map(self, others: Sequence[SoftPrompt], change: Callable[[Sequence[Tensor]], Tensor]) -> Self:
        """A prompt whose every tensor is `change` of the tensors of that name in this prompt and the others."""
        named = [prompt.tensors() for prompt in (self, *others)]
        return self.replace_tensors({name: change([tensors[name] for tensors in named]) for name in named[0]})

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The prompt on another device or in another dtype. Gradients flow through."""
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def freeze(self) -> Self:
        """A copy without gradient that shares no memory with the original."""
        return self.map(lambda tensor: tensor.detach().clone())

    def select(self, indices: Sequence[int]) -> SoftPrompt:
        """The virtual tokens with these numbers, in this order. Keys stay rotated for their old positions."""
        return self.materialize().select(indices)

    def concatenate(self, others: Sequence[SoftPrompt]) -> SoftPrompt:
        """This prompt's virtual tokens, then those of the others. Keys stay rotated for their old positions."""
        return self.materialize().concatenate(others)

    def matrix(self) -> Tensor:
        """[P, C]: one row for each virtual token, for reparametrizations."""
        return self.materialize().matrix()

    def from_matrix(self, matrix_PC: Tensor) -> SoftPrompt:
        """The inverse of `matrix`, with this prompt's layers and heads; its values are not used."""
        return self.materialize().from_matrix(matrix_PC)

    def similarity_vectors(self) -> list[Tensor]:
        """For each layer that counts in a comparison of prompts [P, width]."""
        return self.materialize().similarity_vectors()
