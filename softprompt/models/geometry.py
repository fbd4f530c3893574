"""The shape of a base model as far as soft prompts depend on it: widths, layers, heads, windows and a fingerprint.

A `Geometry` is plain data: it is measured once from a loaded model (`measure.py`), written in the card of every
soft prompt, and compared before a prompt is used. It knows no tensors and no Transformers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

SAMPLE_TOLERANCE = 0.005  # relative; rounding to bfloat16 moves a weight by at most 0.4 %
SMALLEST = 1e-6  # absolute; float16 rounds smaller weights
LEAST_COMPARED = 0.25  # share of the sampled weights that two tables of different lengths must have in common
_OPTIONAL = ("sites", "states", "adapted", "quantization")  # written in a card only where there are some
_MEASURED = ("n_heads", "weights")  # of a loaded model; not written, since cards have no use for them

Sample = Sequence[float | None]  # weights; None for one that a model lacks
AdaptedWeight = tuple[str, int, float]  # parameter, flat index, value
StateShape = tuple[str, tuple[int, ...]]  # "conv.j" or "recurrent.j", the shape of one row's


@dataclass(frozen=True)
class LayerShape:
    """Keys are [kv_heads, P, key_dim], values [kv_heads, P, value_dim]."""

    kv_heads: int
    key_dim: int
    value_dim: int


class LoadedWeights(Protocol):
    """Weights of a loaded model, read where a card of another embedding table or of an adapter needs them."""

    @property
    def loaded(self) -> bool:
        """Whether the model is still there."""
        ...

    def sample(self, vocab: int) -> Sample:
        """The embedding weights that a table of `vocab` rows is sampled at; None for rows beyond this table."""
        ...

    def matrices(self, vocab: int) -> Sample:
        """The weights of matrices that are sampled in a model whose table has `vocab` rows; None beyond this table."""
        ...

    def weight(self, name: str, index: int) -> float | None:
        """One weight by its parameter's name and flat index; None if there is none."""
        ...


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
        states: of a model with recurrent or convolution layers: per layer the shapes of its states.
        adapted: of a base with an adapter (LoRA) alone: the weights that it moved most, each as parameter, flat index
            and value.
        quantization: library and number format of quantized weights, e.g. "bitsandbytes nf4"; "" for plain ones. The
            fingerprint covers it; it is no reason to refuse a prompt.
        n_heads: query heads of a layer. Of a loaded model only: 0 in a geometry that was read from a card.
        weights: reads further weights. Of a loaded model only.
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
    states: tuple[tuple[StateShape, ...], ...] = ()
    adapted: tuple[AdaptedWeight, ...] = ()
    quantization: str = ""
    n_heads: int = field(default=0, compare=False)
    weights: LoadedWeights | None = field(default=None, compare=False, repr=False)

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
        if self.adapted:
            shape["adapted"] = [(name, index, float(f"{x:.1e}")) for name, index, x in self.adapted]
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]

    def differs(self, other: Geometry) -> str | None:
        """Why a prompt made for `other` does not fit this model, or None if it does.

        The sampled weights are compared with a tolerance, so that one model loaded in float32, bfloat16 or
        float16 stays the same model. Embedding tables may have different lengths, as one that is padded or has tokens
        added: the rows that both have are compared.
        """
        for name in ("architecture", "hidden", "layers", "windows", "sites"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} is {_short(mine)}, the prompt's base has {_short(theirs)}"
        if self.states and other.states and self.states != other.states:
            return f"states are {_short(self.states)}, the prompt's base has {_short(other.states)}"
        if self.vocab != other.vocab:
            return self._differs_in_rows(other) or self._differs_in_adapter(other)
        if len(self.sample) != len(other.sample) or (
            self.matrices and other.matrices and len(self.matrices) != len(other.matrices)
        ):
            return "the weight samples have different lengths"
        if not (_close(self.sample, other.sample) and _close(self.matrices, other.matrices)):
            return "same architecture and shape, but other weights"
        return self._differs_in_adapter(other)

    @property
    def _weights(self) -> LoadedWeights | None:
        return self.weights if self.weights is not None and self.weights.loaded else None

    def _differs_in_rows(self, other: Geometry) -> str | None:
        """As `differs`, for embedding tables of different lengths."""
        lengths = f"vocab is {self.vocab}, the prompt's base has {other.vocab}"
        loaded, card = (self, other) if self._weights is not None else (other, self)
        if (weights := loaded._weights) is not None:
            rows, matrices = weights.sample(card.vocab), weights.matrices(card.vocab)
            enough = _in_common(rows, card.sample) >= LEAST_COMPARED * len(card.sample)
        else:  # two cards: each lists other rows, so that the matrices must do
            rows, matrices = (), loaded.matrices
            enough = _in_common(matrices, card.matrices) > 0
        if not enough:
            return lengths
        if not (_close(rows, card.sample) and _close(matrices, card.matrices)):
            return f"{lengths}, and the weights that both have differ"
        return None

    def _differs_in_adapter(self, other: Geometry) -> str | None:
        """As `differs`, for models that are the same but for what an adapter changed.

        A loaded model has the adapter if it has the weights, be they merged, attached or in a checkpoint of its own.
        """
        known = False
        for moved, model in ((self.adapted, other._weights), (other.adapted, self._weights)):
            if moved and model is not None:
                weights = [model.weight(name, index) for name, index, _ in moved]
                if None in weights or not _close(weights, [value for _, _, value in moved]):
                    return "one of the two models has an adapter (LoRA) that the other lacks"
                known = True
        if known or not (self.adapted or other.adapted):
            return None
        mine, theirs = ({(name, index): value for name, index, value in one.adapted} for one in (self, other))
        shared = sorted(mine.keys() & theirs.keys())
        if not shared or not _close([mine[key] for key in shared], [theirs[key] for key in shared]):
            return "one of the two models has an adapter (LoRA) that the other lacks"
        return None

    def to_dict(self) -> dict[str, object]:
        """Plain JSON data; `from_dict` is the inverse. Sites and adapters are written where there are some."""
        plain = asdict(replace(self, weights=None))
        return {k: v for k, v in plain.items() if k not in _MEASURED and (v or k not in _OPTIONAL)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Geometry:
        """Raises KeyError or TypeError on data that `to_dict` did not write."""
        layers = tuple(None if layer is None else LayerShape(**layer) for layer in data["layers"])
        lists = {name: tuple(data[name]) for name in ("windows", "sample", "matrices")}
        lists["sites"] = tuple(data.get("sites", ()))
        lists["states"] = tuple(tuple(map(_state_shape, layer)) for layer in data.get("states", ()))
        lists["adapted"] = tuple(_adapted_weight(*entry) for entry in data.get("adapted", ()))
        if "weights" in data:
            raise TypeError("weights of a loaded model are no part of a card")
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
        moved, states = self.adapted, [state for layer in self.states for state in layer]
        sizes += [size for _, shape in states for size in shape]
        kinds: list[tuple[type, Sequence[object]]] = [
            (
                str,
                [
                    *(self.base, self.architecture, self.quantization),
                    *self.sites,
                    *(name for name, *_ in (*moved, *states)),
                ],
            ),
            (
                int,
                [self.hidden, self.vocab, self.max_positions, self.n_heads, *sizes, *(at for _, at, _ in moved)],
            ),
            (float, [*self.sample, *self.matrices, *(value for _, _, value in moved)]),
        ]
        for kind, values in kinds:
            if odd := [value for value in values if type(value) is not kind]:
                raise TypeError(f"{_short(odd[0])} is not of type {kind.__name__}")


def _state_shape(state: tuple[str, Sequence[int]]) -> StateShape:
    name, shape = state
    return name, tuple(shape)


def _adapted_weight(name: str, index: int, value: float) -> AdaptedWeight:
    return name, index, value


def _in_common(mine: Sample, theirs: Sample) -> int:
    return sum(x is not None and y is not None for x, y in zip(mine, theirs, strict=False))


def _close(mine: Sample, theirs: Sample) -> bool:
    """Whether the weights that both have are the same but for rounding."""
    return all(
        math.isclose(x, y, rel_tol=SAMPLE_TOLERANCE, abs_tol=SMALLEST)
        for x, y in zip(mine, theirs, strict=False)
        if x is not None and y is not None
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
