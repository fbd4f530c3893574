"""Keys and values in a slot file of llama-server, found by their own headers, so that every version can be read.

After a head that differs between versions a file holds, for each of the server's caches (two where some layers have a
sliding window), the keys of its layers and then the values, each block behind

    i32 number format, u64 bytes of a row                       T rows, one for each token
    i32 number format, u32 bytes of a number, u32 numbers       values transposed (without flash attention)

(`llama_kv_cache::state_write_data` in src/llama-kv-cache.cpp of llama.cpp.)

Shapes: T tokens, C numbers of a token's keys or values in one layer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softprompt.errors import StoreError

# ggml's numbers for formats, and bytes for each block of numbers
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
_BLOCKS = {"f32": (1, 4), "f16": (1, 2), "q8_0": (32, 34), "bf16": (1, 2)}
_HEADER = 12


@dataclass(frozen=True)
class Block:
    """The keys or the values of one layer in a slot file.

    Attributes:
        offset: of the first number.
        width: C.
        n_tokens: T.
        transposed: whether it is stored as [C, T].
    """

    offset: int
    width: int
    n_tokens: int
    transposed: bool


@dataclass(frozen=True)
class LayerBlocks:
    """The keys and the values of one layer."""

    keys: Block
    values: Block


Widths = tuple[int, int]  # C of keys and of values


def find_blocks(data: bytes, caches: Sequence[Sequence[Widths]], n_tokens: int, kv_type: str) -> list[LayerBlocks]:
    """Where the keys and values of each layer are, in the order given.

    Args:
        caches: for each of the server's caches its layers.

    Raises StoreError if the file has no such caches of that many tokens in that number format.
    """
    found, start = list[LayerBlocks](), 0
    for layers in caches:
        first = _key_header(layers[0][0], kv_type)
        blocks, at = None, data.find(first, start)
        while at >= 0 and (blocks := _read_cache(data, at, layers, n_tokens, kv_type)) is None:
            at = data.find(first, at + 1)
        if blocks is None:
            raise StoreError(
                "the slot file does not hold the keys and values that this model has",
                expected=f"{len(layers)} layers of {n_tokens} tokens as {kv_type}",
                got=f"{len(data):,} bytes without them",
                hint="--kv-type as the server's --cache-type-k and -v; a prefix may not be longer than its window",
            )
        found += blocks
        last = blocks[-1].values
        start = last.offset + _size(last, kv_type)
    return found


def read_block(data: bytes, block: Block, kv_type: str) -> np.ndarray:
    """[T, C] float32."""
    raw = np.frombuffer(data, np.uint8, _size(block, kv_type), block.offset)
    if block.transposed:
        return _decode(raw.reshape(1, -1), kv_type).reshape(block.width, block.n_tokens).T
    return _decode(raw.reshape(block.n_tokens, -1), kv_type)


def write_block(data: bytearray, block: Block, values_TC: np.ndarray, kv_type: str) -> None:
    """Replace the numbers of a block."""
    assert values_TC.shape == (block.n_tokens, block.width)
    rows = values_TC.T.reshape(1, -1) if block.transposed else values_TC
    raw = _encode(np.ascontiguousarray(rows, dtype=np.float32), kv_type).tobytes()
    assert len(raw) == _size(block, kv_type)
    data[block.offset : block.offset + len(raw)] = raw


def row_bytes(width: int, kv_type: str) -> int:
    """Bytes of a token's keys or values in one layer."""
    numbers, size = _BLOCKS[kv_type]
    return width // numbers * size


def _read_cache(
    data: bytes, at: int, layers: Sequence[Widths], n_tokens: int, kv_type: str
) -> list[LayerBlocks] | None:
    """The blocks of one cache whose first header is there; None if they do not follow each other."""
    keys, values = list[Block](), list[Block]()
    for width, _ in layers:
        if data[at : at + _HEADER] != _key_header(width, kv_type):
            return None
        keys.append(Block(at + _HEADER, width, n_tokens, transposed=False))
        at += _HEADER + _size(keys[-1], kv_type)
    for _, width in layers:
        header = data[at : at + _HEADER]
        if header not in (_key_header(width, kv_type), _transposed_header(width, kv_type)):
            return None
        values.append(Block(at + _HEADER, width, n_tokens, header != _key_header(width, kv_type)))
        at += _HEADER + _size(values[-1], kv_type)
    if at > len(data):
        return None
    return [LayerBlocks(*pair) for pair in zip(keys, values, strict=True)]


def _key_header(width: int, kv_type: str) -> bytes:
    return struct.pack("<iQ", KV_TYPES[kv_type], row_bytes(width, kv_type))


def _transposed_header(width: int, kv_type: str) -> bytes:
    return struct.pack("<iII", KV_TYPES[kv_type], _BLOCKS[kv_type][1], width)


def _size(block: Block, kv_type: str) -> int:
    return block.n_tokens * row_bytes(block.width, kv_type)


def _decode(raw: np.ndarray, kv_type: str) -> np.ndarray:
    from gguf import GGMLQuantizationType, dequantize

    return dequantize(raw, GGMLQuantizationType(KV_TYPES[kv_type]))


def _encode(numbers: np.ndarray, kv_type: str) -> np.ndarray:
    from gguf import GGMLQuantizationType, quantize

    return quantize(numbers, GGMLQuantizationType(KV_TYPES[kv_type]))
