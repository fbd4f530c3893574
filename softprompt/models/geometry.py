"""What a base model looks like to a soft prompt: widths, layers, heads, windows and a fingerprint.

A `Geometry` is plain data: it is measured once from a loaded model (`model.py`), written in the card of every
soft prompt, and compared before a prompt is used. It knows no tensors and no Transformers.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

SAMPLE_TOLERANCE = 0.005  # relative; rounding to bfloat16 moves a weight by at most 0.4 %
SMALLEST = 1e-6  # absolute; float16 rounds what is smaller


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
        sites: encoder–decoders only: what kind of attention each layer is, "encoder", "decoder" or "cross".
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

    @property
    def fingerprint(self) -> str:
        """16 hex digits over shape and sampled weights, for display; `differs` decides."""
        facts = self.to_dict() | {"base": "", "matrices": "", "sample": [float(f"{x:.1e}") for x in self.sample]}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

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
        """Plain JSON data; `from_dict` is the inverse. A causal model has no sites, and none are written."""
        facts = asdict(self)
        return facts if self.sites else {name: fact for name, fact in facts.items() if name != "sites"}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Geometry:
        """Raises KeyError or TypeError on data that `to_dict` did not write."""
        layers = tuple(None if layer is None else LayerShape(**layer) for layer in data["layers"])
        lists = {name: tuple(data[name]) for name in ("windows", "sample", "matrices")}
        lists["sites"] = tuple(data.get("sites", ()))
        rest = {k: v for k, v in data.items() if k not in lists and k != "layers"}
        found = Geometry(layers=layers, **lists, **rest)
        found._check_types()
        if found.sites and len(found.sites) != len(layers):
            raise TypeError(f"{len(found.sites)} sites for {len(layers)} layers")
        return found

    def _check_types(self) -> None:
        """A card comes from a stranger: a text where a number belongs must not surface later, in a comparison."""
        sizes = [size for layer in self.layers if layer is not None for size in vars(layer).values()]
        sizes += [window for window in self.windows if window is not None]
        kinds: list[tuple[type, list[Any]]] = [
            (str, [self.base, self.architecture, *self.sites]),
            (int, [self.hidden, self.vocab, self.max_positions, *sizes]),
            (float, [*self.sample, *self.matrices]),
        ]
        for kind, values in kinds:
            if odd := [value for value in values if type(value) is not kind]:
                raise TypeError(f"{_short(odd[0])} is not of type {kind.__name__}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
