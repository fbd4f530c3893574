"""The shape of a base model as far as soft prompts depend on it: widths, layers, heads, windows and a fingerprint.

A `Geometry` is plain data: it is measured once from a loaded model (`measure.py`), written in the card of every
soft prompt, and compared before a prompt is used. It knows no tensors and no Transformers.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

SAMPLE_TOLERANCE = 0.005  # relative; rounding to bfloat16 moves a weight by at most 0.4 %
SMALLEST = 1e-6  # absolute; float16 rounds smaller weights
_OPTIONAL = ("sites",)  # written in a card only where there are some
_MEASURED = ("n_heads",)  # of a loaded model; not written, since cards have no use for them


@dataclass(frozen=True)
class LayerShape:
    """Keys are [kv_heads, P, key_dim], values [kv_heads, P, value_dim]."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class Geometry:
    """The shape and identity of a base model.

    Attributes:
        base: the name the user knows the model by; for messages only, never compared.
        architecture: Transformers' `model_type`, e.g. "llama".
        hidden: width H of the embeddings.
        vocab: rows V of the embedding table.
        layers: one entry per layer; None for a layer that keeps no keys and values of its own.
        windows: per layer the sliding window in tokens, or None for full attention.
        max_positions: the context length in tokens.
        sample: some embedding weights, to tell two models of one shape apart.
        matrices: some weights of matrices all through the layers, for siblings whose embeddings are the same; empty
            for a quantised model, and then not compared.
        sites: encoder–decoders only: the kind of attention of each layer, "encoder", "decoder" or "cross".
        n_heads: query heads of a layer. Of a loaded model only: 0 in a geometry that was read from a card.
    """

    base: str
    architecture: str
    hidden: int
    vocab: int
    layers: tuple[LayerShape | None, ...]
    windows: tuple[int | None, ...]
    max_positions: int
    sample: tuple[float, ...]
    matrices: tuple[float, ...]
    sites: tuple[str, ...] = ()
    n_heads: int = field(default=0, compare=False)

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of one token's keys and values, all layers together, with numbers of `itemsize` bytes."""
        return itemsize * sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in self.layers if layer)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs of attention per query-key pair, all layers together."""
        return float(sum(2 * self.n_heads * (layer.key_dim + layer.value_dim) for layer in self.layers if layer))

    @property
    def fingerprint(self) -> str:
        """16 hex digits over shape and sampled weights, for display; `differs` decides."""
        rounded = [float(f"{x:.1e}") for x in self.sample]
        shape = self.to_dict() | {"base": "", "matrices": "", "sample": rounded}
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]

    def differs(self, other: Geometry) -> str | None:
        """Why a prompt made for `other` does not fit this model, or None if it does.

        The sampled weights are compared with a tolerance, so that one model loaded in float32, bfloat16 or
        float16 stays the same model.
        """
        for name in ("architecture", "hidden", "vocab", "layers", "windows", "sites"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} is {_short(mine)}, the prompt's base has {_short(theirs)}"
        pairs = [(self.sample, other.sample)]
        if self.matrices and other.matrices:
            pairs.append((self.matrices, other.matrices))
        for mine, theirs in pairs:
            if len(mine) != len(theirs):
                return "the weight samples have different lengths"
            for x, y in zip(mine, theirs, strict=True):
                if not math.isclose(x, y, rel_tol=SAMPLE_TOLERANCE, abs_tol=SMALLEST):
                    return "same architecture and shape, but other weights"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` is the inverse. Sites are written where there are some, `n_heads` never."""
        left_out = _MEASURED if self.sites else (*_MEASURED, *_OPTIONAL)
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Geometry:
        """Raises KeyError or TypeError on data that `to_dict` did not write."""
        layers = tuple(None if layer is None else LayerShape(**layer) for layer in data["layers"])
        lists = {name: tuple(data[name]) for name in ("windows", "sample", "matrices")}
        lists["sites"] = tuple(data.get("sites", ()))
        rest = {k: v for k, v in data.items() if k not in lists and k != "layers"}
        geometry = Geometry(layers=layers, **lists, **rest)
        geometry._check_types()
        if geometry.sites and len(geometry.sites) != len(layers):
            raise TypeError(f"{len(geometry.sites)} sites for {len(layers)} layers")
        return geometry

    def _check_types(self) -> None:
        """Raise TypeError for a value of another type: a card comes from a stranger, and errors must show here."""
        sizes = [size for layer in self.layers if layer is not None for size in vars(layer).values()]
        sizes += [window for window in self.windows if window is not None]
        kinds: list[tuple[type, list[Any]]] = [
            (str, [self.base, self.architecture, *self.sites]),
            (int, [self.hidden, self.vocab, self.max_positions, self.n_heads, *sizes]),
            (float, [*self.sample, *self.matrices]),
        ]
        for kind, values in kinds:
            if odd := [value for value in values if type(value) is not kind]:
                raise TypeError(f"{_short(odd[0])} is not of type {kind.__name__}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
