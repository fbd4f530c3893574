"""Soft prompts of the states that recurrent layers start from, and of keys and values in attention layers.

Initial-state tuning: Galim et al.: Parameter-Efficient Fine-Tuning of State Space Models. ICML 2025.
https://arxiv.org/abs/2410.09016; of RWKV, Xiao et al.: State Tuning. 2025. https://arxiv.org/abs/2504.05097. A hybrid's
attention layers have keys and values beside them, as in prefix tuning.

Shapes: P virtual tokens, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from softprompt.errors import PromptError
from softprompt.models.geometry import Geometry
from softprompt.prompts.base import LayerState, Shape, SoftPrompt
from softprompt.prompts.kv_prompt import KVPrompt

_NAMES = {"keys": "k", "values": "v"}  # of a layer's tensors in files, as those of a KV prompt


@final
@dataclass(frozen=True, eq=False)
class StatePrompt(SoftPrompt):
    """Everything that each layer carries from a prefix of P tokens.

    Attributes:
        layers: per layer its tensors by name: "keys" [K, P, D] and "values" [K, P, D'], post-RoPE at positions 0…P-1;
            "conv.j" and "recurrent.j", the layer's j-th convolution and recurrent state, in the base model's shapes.

    Recurrent states have no token axis: such a prompt is not a list of tokens, and cannot be cut or joined. P is the
    number of keys; 1 for a model without attention. Of a model without recurrent layers it is a KV prompt.
    """

    layers: tuple[LayerState, ...]

    form: ClassVar[str] = "state"
    begins_the_sequence: ClassVar[bool] = True

    @property
    def n_tokens(self) -> int:
        return next((layer["keys"].shape[1] for layer in self.layers if "keys" in layer), 1)

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"layers.{i}.{_NAMES.get(name, name)}": tensor
            for i, layer in enumerate(self.layers)
            for name, tensor in layer.items()
        }

    @classmethod
    def expected_shapes(
        cls, geometry: Geometry, n_tokens: int, stored: Mapping[str, Shape] | None = None
    ) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for i, layer in enumerate(geometry.layers):
            if layer is not None:
                shapes[f"layers.{i}.k"] = (layer.kv_heads, n_tokens, layer.key_dim)
                shapes[f"layers.{i}.v"] = (layer.kv_heads, n_tokens, layer.value_dim)
        for i, states in enumerate(geometry.states):
            shapes |= {f"layers.{i}.{name}": shape for name, shape in states}
        return shapes

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], geometry: Geometry) -> StatePrompt:
        return _from_named(tensors, len(geometry.layers))

    def replace_tensors(self, tensors: Mapping[str, Tensor]) -> StatePrompt:
        return _from_named(tensors, len(self.layers))

    def states(self) -> tuple[LayerState, ...]:
        return self.layers

    def input_embeddings(self) -> None:
        return None

    def materialize(self) -> KVPrompt:
        """The same as keys and values. Raises PromptError if there is a state, which has no token axis."""
        if all(layer.keys() <= _NAMES.keys() for layer in self.layers):
            return KVPrompt(tuple((layer["keys"], layer["values"]) if layer else None for layer in self.layers))
        raise PromptError(
            "a state prompt is not a list of virtual tokens, so it cannot be cut, joined, moved or served as keys and "
            "values",
            got="states of recurrent layers",
            hint="train an embedding prompt for this: --method prompt-tuning",
        )


def _from_named(tensors: Mapping[str, Tensor], n_layers: int) -> StatePrompt:
    short = {name: whole for whole, name in _NAMES.items()}
    layers: list[dict[str, Tensor]] = [{} for _ in range(n_layers)]
    for key, tensor in tensors.items():
        place, _, name = key.removeprefix("layers.").partition(".")
        layers[int(place)][short.get(name, name)] = tensor
    return StatePrompt(tuple(layers))
