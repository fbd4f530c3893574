"""A slot file with a soft prompt's keys and values in it: a file that the server itself saved, with other numbers.

Which layers go into which of the server's caches, and in which order it keeps the numbers of a key, is proven on the
file itself: the loaded model runs the same tokens, and the two must agree. So no table of architectures is needed, and
another model's file is never patched.

Shapes: T tokens of the prefix, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from softprompt.errors import StoreError, UnsupportedModelError, WrongBaseError
from softprompt.export.slot_file import LayerBlocks, find_blocks, read_block, write_block
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import compute_keys_values

LayerArrays = tuple[np.ndarray, np.ndarray]  # keys and values [K, T, D] of one layer, float32
Order = Literal["as in Transformers", "interleaved"]
_LARGEST = 0.5  # relative difference of the server's keys or values from ours, with any quantization


@dataclass(frozen=True)
class SlotLayout:
    """How a server keeps the keys and values of a model.

    Attributes:
        layers: for each layer with keys and values of its own its number in `geometry.layers`, as the blocks stand.
        blocks: where they are.
        order: of the numbers of a key. "interleaved": number i of each half stands at 2i and 2i + 1, as llama.cpp's
            rotation of neighboring numbers has it (Llama, Mistral, Granite).
        difference: largest relative difference of a layer's keys or values from ours, for the same tokens.
    """

    layers: tuple[int, ...]
    blocks: tuple[LayerBlocks, ...]
    order: Order
    difference: float


def compiled(lm: FrozenLM, prefix: Prefix) -> dict[int, LayerArrays]:
    """The keys and values of a prefix by layer. Raises UnsupportedModelError for a model that carries more."""
    carries = "an encoder-decoder" if lm.is_encoder_decoder else "recurrent states" if any(lm.geometry.states) else ""
    if carries:
        what = "a slot file made here holds keys and values alone"
        raise UnsupportedModelError(what, where=lm.name, got=carries, hint="--to gguf-lora, for embeddings")
    layers = compute_keys_values(lm, prefix)
    return {i: (_array(kv[0]), _array(kv[1])) for i, kv in enumerate(layers) if kv is not None}


def prove_layout(data: bytes, lm: FrozenLM, saved: Mapping[int, LayerArrays], kv_type: str) -> SlotLayout:
    """How a slot file holds the keys and values of tokens for which our model computes `saved`.

    Raises:
        StoreError: it has no keys and values of that many tokens and layers in that number format.
        WrongBaseError: it has others.
    """
    refusals = list[StoreError]()
    layouts = list[SlotLayout]()
    for caches in _possible_caches(lm, saved):
        widths = [[tuple(x.shape[0] * x.shape[2] for x in saved[i]) for i in layers] for layers in caches]
        n_tokens = next(iter(saved.values()))[0].shape[1]
        try:
            blocks = find_blocks(data, [[(k, v) for k, v in cache] for cache in widths], n_tokens, kv_type)
        except StoreError as error:
            refusals.append(error)
            continue
        order = [i for layers in caches for i in layers]
        layouts += [_compare(data, order, blocks, saved, kv_type, kind) for kind in _orders()]
    if not layouts:
        raise refusals[0]
    best = min(layouts, key=lambda layout: layout.difference)
    if best.difference > _LARGEST:
        raise WrongBaseError(
            "the server's keys and values are not those of the loaded model",
            where=lm.name,
            expected=f"a relative difference of at most {_LARGEST}",
            got=f"{best.difference:.2g}",
            hint="--gguf FILE: a GGUF of the model that the soft prompt was trained for",
        )
    return best


def patch_slot(data: bytes, layout: SlotLayout, layers: Mapping[int, LayerArrays], kv_type: str) -> bytes:
    """The slot file with the keys and values of another prefix of the same length."""
    patched = bytearray(data)
    for number, blocks in zip(layout.layers, layout.blocks, strict=True):
        keys, values = layers[number]
        write_block(patched, blocks.keys, _rows(keys, layout.order), kv_type)
        write_block(patched, blocks.values, _rows(values, "as in Transformers"), kv_type)
    return bytes(patched)


def smallest_window(lm: FrozenLM) -> int | None:
    """Tokens of the shortest sliding window; None if there is none."""
    return min((window for window in lm.geometry.windows if window is not None), default=None)


def _possible_caches(lm: FrozenLM, saved: Mapping[int, LayerArrays]) -> list[list[list[int]]]:
    """One cache with all layers; or, as for Gemma, one of layers that attend to everything and one of those that do
    not."""
    windows = lm.geometry.windows
    full = [i for i in saved if windows[i] is None]
    sliding = [i for i in saved if windows[i] is not None]
    return [[list(saved)], [full, sliding]] if full and sliding else [[list(saved)]]


def _orders() -> tuple[Order, Order]:
    return "as in Transformers", "interleaved"


def _compare(
    data: bytes,
    layers: Sequence[int],
    blocks: Sequence[LayerBlocks],
    saved: Mapping[int, LayerArrays],
    kv_type: str,
    order: Order,
) -> SlotLayout:
    differences = list[float]()
    for number, found in zip(layers, blocks, strict=True):
        keys, values = saved[number]
        for wanted, block in ((_rows(keys, order), found.keys), (_rows(values, "as in Transformers"), found.values)):
            got = read_block(data, block, kv_type)
            differences.append(float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)))
    largest = max(differences) if np.isfinite(differences).all() else float("inf")
    return SlotLayout(tuple(layers), tuple(blocks), order, largest)


def _rows(states_KTD: np.ndarray, order: Order) -> np.ndarray:
    """[T, K·D], a row for each token."""
    if order == "interleaved" and states_KTD.shape[2] % 2 == 0:
        shape = states_KTD.shape
        states_KTD = states_KTD.reshape(*shape[:2], 2, shape[2] // 2).swapaxes(2, 3).reshape(shape)
    return states_KTD.swapaxes(0, 1).reshape(states_KTD.shape[1], -1)


def _array(states_1KTD: Tensor) -> np.ndarray:
    return states_1KTD[0].float().cpu().numpy()
