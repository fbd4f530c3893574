"""Copies of a model's safetensors files with longer tables, made in pieces: memory does not grow with the model.

A safetensors file is the length of its header (8 bytes, little endian), a JSON header with the type, the shape and the
place of every tensor, then the numbers: https://github.com/huggingface/safetensors#format.

Shapes: V rows of a table, H width.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from softprompt.errors import StoreError
from softprompt.json_types import JSONObject

NUMBER_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PIECE = 64 * 2**20  # bytes in memory at once
_MAX_HEADER = 100 * 2**20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        file: where.
        name: in that file.
        dtype: safetensors' name of it.
        begin, end: its bytes, counted from the start of the file.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a table."""
        return (self.end - self.begin) // max(1, self.shape[0])

    def rows(self, begin: int, end: int) -> Tensor:
        """Rows [end - begin, H] of a table."""
        with self.file.open("rb") as file:
            file.seek(self.begin + begin * self.row_bytes)
            data = bytearray(file.read((end - begin) * self.row_bytes))
        return torch.frombuffer(data, dtype=NUMBER_TYPES[self.dtype]).view(end - begin, *self.shape[1:])

    def pieces(self) -> Iterator[Tensor]:
        """All rows, a piece at a time."""
        step = max(1, _PIECE // max(1, self.row_bytes))
        for begin in range(0, self.shape[0], step):
            yield self.rows(begin, min(begin + step, self.shape[0]))


@dataclass(frozen=True, eq=False)
class NewTable:
    """A table made of a stored one.

    Attributes:
        source: the stored table [V, H].
        rows: rows that are replaced or added, by number. Rows beyond V that are not named are zero.
        n_rows: of the new table.
    """

    source: StoredTensor
    rows: Mapping[int, Tensor]
    n_rows: int

    @property
    def shape(self) -> list[int]:
        """[n_rows, H]."""
        return [self.n_rows, *self.source.shape[1:]]

    def write(self, out: BinaryIO) -> None:
        """Append the table's numbers to a file."""
        start = out.tell()
        _copy(self.source, out)
        out.write(bytes((self.n_rows - self.source.shape[0]) * self.source.row_bytes))
        end = out.tell()
        for number, row in self.rows.items():
            out.seek(start + number * self.source.row_bytes)
            out.write(_bytes(row.to(NUMBER_TYPES[self.source.dtype])))
        out.seek(end)


def read_header(path: Path) -> tuple[dict[str, StoredTensor], JSONObject]:
    """Every tensor of a safetensors file by name, and the file's metadata. Raises StoreError for a damaged file."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER:
                raise ValueError("a header of more than 100 MB")
            header = cast("dict[str, JSONObject]", json.loads(file.read(length)))
        metadata = header.pop("__metadata__", {})
        tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in header.items()}
    except (OSError, struct.error, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"damaged safetensors file: {error}", where=path) from error
    return tensors, metadata


def write_weights(
    out: Path, tensors: Sequence[StoredTensor], tables: Mapping[str, NewTable], metadata: JSONObject
) -> None:
    """Write a safetensors file of these tensors, in this order, and of the tables.

    Args:
        tensors: copied as they are, unless a table has their name.
        tables: new tables by name; those that no tensor has are put last.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at, order = 0, [*(tensor.name for tensor in tensors), *(tables.keys() - {tensor.name for tensor in tensors})]
    kept = {tensor.name: tensor for tensor in tensors}
    for name in order:
        table, stored = tables.get(name), kept.get(name)
        size = table.n_rows * table.source.row_bytes if table else 0
        if table is None and stored is not None:
            size = stored.end - stored.begin
        one = table.source if table else stored
        assert one is not None, "each name is that of a tensor or a table"
        shape = table.shape if table else list(one.shape)
        header[name] = {"dtype": one.dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with out.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            if name in tables:
                tables[name].write(file)
            else:
                _copy(kept[name], file)


def _stored(path: Path, name: str, entry: JSONObject, data: int) -> StoredTensor:
    offsets, shape = cast("list[int]", entry["data_offsets"]), cast("list[int]", entry["shape"])
    return StoredTensor(path, name, str(entry["dtype"]), tuple(shape), data + offsets[0], data + offsets[1])


def _copy(tensor: StoredTensor, out: BinaryIO) -> None:
    with tensor.file.open("rb") as source:
        source.seek(tensor.begin)
        left = tensor.end - tensor.begin
        while left:
            piece = source.read(min(left, _PIECE))
            if not piece:
                raise StoreError("the safetensors file is cut off", where=tensor.file)
            out.write(piece)
            left -= len(piece)


def _bytes(row: Tensor) -> bytes:
    return row.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def copy_file(source: Path, out: Path) -> None:
    """A copy of a file, or of what a link to one leads to."""
    shutil.copyfile(source.resolve(), out)
