"""Sampled weights of a loaded model, by which a card recognizes its base model.

The rows of the embedding table are sampled from the first to the last, so a table of another length is sampled
elsewhere. `ModelWeights` reads what a table of any length would be sampled at, as far as this one has those rows.
"""

from __future__ import annotations

import weakref
from typing import final

import torch
from torch import Tensor, nn

from softprompt.models.geometry import Sample
from softprompt.models.placement import own_weights, whole_weight

SAMPLED_ROWS = 8  # of the embedding table
SAMPLED_COLUMNS = 4  # of each of these rows
SAMPLED_MATRICES = 16  # from the first layer to the last
SAMPLED_WEIGHTS = 2  # of each of these matrices


@final
class ModelWeights:
    """Reads single weights of a loaded model, which it does not keep alive.

    Args:
        model: the whole model, in which adapted weights are found by name.
        layers: the part whose matrices are sampled.
        embedding: the module with the embedding table [V, H].
    """

    def __init__(self, model: nn.Module, layers: nn.Module, embedding: nn.Module) -> None:
        self._model, self._layers = weakref.ref(model), weakref.ref(layers)
        self._embedding = weakref.ref(embedding)

    @property
    def loaded(self) -> bool:
        """Whether the model is still there."""
        return self._model() is not None

    @property
    def _table(self) -> Tensor | None:
        embedding = self._embedding()
        return None if embedding is None else whole_weight(embedding)

    def sample(self, vocab: int) -> Sample:
        """The embedding weights that a table of `vocab` rows is sampled at; None for rows beyond this table."""
        table = self._table
        if table is None:
            return ()
        values: list[float | None] = []
        for row in spread(vocab, SAMPLED_ROWS):
            lacking = [None] * min(SAMPLED_COLUMNS, table.shape[1])
            values += _floats(table[row, :SAMPLED_COLUMNS]) if row < len(table) else lacking
        return tuple(values)

    def matrices(self, vocab: int) -> Sample:
        """A few weights of matrices from the first to the last layer, as if the table had `vocab` rows.

        None stands for a weight beyond an output embedding of fewer rows. Nothing is sampled of a quantised model.
        """
        model, layers = self._model(), self._layers()
        embedding = self._embedding()
        if model is None or layers is None or embedding is None or getattr(model, "is_quantized", False):
            return ()
        table = embedding.get_parameter("weight")
        matrices = [place[:2] for place in own_weights(layers) if place[2].ndim >= 2 and place[2] is not table]
        values: list[float | None] = []
        for i in spread(len(matrices), SAMPLED_MATRICES) if matrices else ():
            weight = whole_weight(*matrices[i])
            if not weight.is_floating_point() or type(weight.data) is not Tensor:
                return ()
            flat = weight.detach().reshape(-1)
            size = vocab * table.shape[1] if weight.shape == table.shape else len(flat)
            places = spread(size, SAMPLED_WEIGHTS + 2)[1:-1]
            values += [float(flat[place]) if place < len(flat) else None for place in places]
        return tuple(values)

    def weight(self, name: str, index: int) -> float | None:
        """One weight by its parameter's name and flat index; None if there is none that can be read."""
        model = self._model()
        if model is None:
            return None
        place, _, leaf = name.rpartition(".")
        try:
            tensor = whole_weight(model.get_submodule(place), leaf)
        except AttributeError:
            return None
        plain = tensor.is_floating_point() and type(tensor.data) is Tensor and 0 <= index < tensor.numel()
        return float(tensor.detach().reshape(-1)[index]) if plain else None


def _floats(weights: Tensor) -> list[float]:
    return weights.float().numpy(force=True).tolist()


def spread(size: int, count: int) -> list[int]:
    """`count` whole numbers from 0 to `size` - 1."""
    return torch.linspace(0, size - 1, count).long().numpy(force=True).tolist()
