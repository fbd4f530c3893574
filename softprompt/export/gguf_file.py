"""The base model as llama.cpp reads it: what a GGUF file holds, whether it is ours, and a copy with output weights.

GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. All shards of a split file are read.

Shapes: V vocabulary, H embedding width, n rows.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from softprompt.errors import ConfigError, ModelError, WrongBaseError, first_line, missing_extra
from softprompt.export.base import ExportSource
from softprompt.models.sources import gguf_file

if TYPE_CHECKING:
    from gguf import GGUFReader

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
# Architectures whose output llama.cpp always takes from the embedding: a file with more tensors is not loaded.
ALWAYS_TIED = frozenset({"gemma", "gemma2", "command-r", "cohere2", "cohere2moe", "openelm"})
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_COMPARED = 64  # rows of the embedding
# Largest relative difference that a quantized row may have from its original, about twice the usual one
_ERRORS = {"F": 0.01, "BF": 0.01, "Q8": 0.03, "Q6": 0.08, "Q5": 0.15, "Q4": 0.25, "IQ4": 0.25, "Q3": 0.4, "IQ3": 0.4}


@dataclass(frozen=True)
class BaseGGUF:
    """A base model's GGUF file.

    Attributes:
        path: the file, of a split one the first.
        architecture: llama.cpp's name, e.g. "llama", "qwen3".
        hidden: H.
        vocab: V.
        n_layers: number of blocks.
        tied: whether the output weights are those of the embedding.
        number_format: of the embedding, e.g. "Q8_0".
        table: the embedding as stored, [V, bytes or numbers of a row].
    """

    path: Path
    architecture: str
    hidden: int
    vocab: int
    n_layers: int
    tied: bool
    number_format: str
    table: np.ndarray

    def rows(self, ids: Sequence[int]) -> Tensor:
        """[n, H] float32: rows of the embedding, dequantized. Raises ModelError for a format of no known decoder."""
        from gguf import GGMLQuantizationType, dequantize

        try:
            rows = dequantize(np.ascontiguousarray(self.table[list(ids)]), GGMLQuantizationType[self.number_format])
        except NotImplementedError as error:
            hint = "a file whose embedding has another format (llama-quantize --token-embedding-type f16)"
            raise ModelError(first_line(error), where=self.path, got=self.number_format, hint=hint) from error
        return torch.from_numpy(np.array(rows, dtype=np.float32))


def base_gguf(source: ExportSource) -> BaseGGUF:
    """The GGUF of an export: --gguf, or that which the base model itself was read from; checked to be the same model.

    Raises:
        ConfigError: there is none.
        MissingExtraError: the package gguf is not installed.
        ModelError: it cannot be read.
        WrongBaseError: it holds another model.
    """
    path = source.options.gguf or gguf_file(source.lm.name)
    if path is None:
        what = "this target needs the base model as the GGUF file that llama.cpp runs"
        raise ConfigError(what, where=source.lm.name, hint="--gguf FILE")
    base = read_gguf(path)
    _check_same_model(base, source)
    return base


def read_gguf(path: Path) -> BaseGGUF:
    """What a GGUF file of a language model holds. Raises MissingExtraError and ModelError."""
    readers = [_reader(shard) for shard in _shards(path)]
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    try:
        architecture = str(readers[0].fields["general.architecture"].contents())
        n_layers = int(readers[0].fields[f"{architecture}.block_count"].contents())
        table = tensors[EMBEDDING]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ModelError("this GGUF file holds no language model", where=path, got=first_line(error)) from error
    hidden, vocab = (int(size) for size in table.shape)
    name = table.tensor_type.name
    return BaseGGUF(path, architecture, hidden, vocab, n_layers, OUTPUT not in tensors, name, table.data)


def write_untied(base: BaseGGUF, out: Path) -> None:
    """Copy a GGUF file, with the embedding once more as output weights.

    Raises ConfigError for a file in several shards, and for an architecture that takes no output weights.
    """
    if base.architecture in ALWAYS_TIED:
        what = "llama.cpp reads no output weights of this architecture"
        raise ConfigError(what, where=base.path, got=base.architecture, hint="--to llama-slot")
    if len(_shards(base.path)) > 1:
        hint = "llama-gguf-split --merge makes one file of them"
        raise ConfigError("a model in several files cannot be untied", where=base.path, hint=hint)
    reader = _reader(base.path)
    table = next(tensor for tensor in reader.tensors if tensor.name == EMBEDDING)
    infos_end = max(tensor.field.offset + sum(part.nbytes for part in tensor.field.parts) for tensor in reader.tensors)
    size = base.path.stat().st_size - reader.data_offset
    info = b"".join(part.tobytes() for part in table.field.parts[2:5])  # dimensions and number format as they are
    name = OUTPUT.encode()
    added = len(name).to_bytes(8, "little") + name + info + _aligned(size, reader.alignment).to_bytes(8, "little")
    with base.path.open("rb") as read, out.open("wb") as write:
        head = bytearray(read.read(infos_end))
        head[8:16] = (len(reader.tensors) + 1).to_bytes(8, "little")
        write.write(head + added)
        _pad(write, reader.alignment)
        read.seek(reader.data_offset)
        shutil.copyfileobj(read, write, 2**20)
        _pad(write, reader.alignment)
        read.seek(table.data_offset)
        _copy(read, write, int(table.n_bytes))


def untied_size(base: BaseGGUF) -> int:
    """Bytes that `write_untied` adds."""
    return int(base.table.nbytes)


def _check_same_model(base: BaseGGUF, source: ExportSource) -> None:
    """Raise WrongBaseError unless sizes and some rows of the embedding are the loaded model's."""
    lm = source.lm
    got = {"hidden": base.hidden, "layers": base.n_layers}
    expected = {"hidden": lm.geometry.hidden, "layers": len(lm.geometry.layers)}
    hint = "--gguf FILE: a GGUF of the model that the soft prompt was trained for"
    if got != expected:
        raise WrongBaseError("another model", where=base.path, expected=expected, got=got, hint=hint)
    both = min(base.vocab, lm.geometry.vocab)
    ids = sorted({both * i // _COMPARED for i in range(_COMPARED)})
    ours = lm.embedding_table[ids].float().cpu()
    difference = float((base.rows(ids) - ours).norm() / ours.norm())
    if not difference <= (limit := _usual_error(base.number_format)):  # nor NaN
        raise WrongBaseError(
            "another model: its embeddings differ from the loaded one's",
            where=base.path,
            expected=f"a relative difference of at most {limit} with {base.number_format}",
            got=f"{difference:.2g}",
            hint=hint,
        )


def _usual_error(number_format: str) -> float:
    family = re.match(r"(?:B?F(?=16|32))|I?Q\d", number_format)
    return _ERRORS.get(family[0], 0.8) if family else 0.8


def _reader(path: Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise missing_extra("gguf", "gguf", where=path) from error
    if not path.is_file():
        raise ModelError("no such file", where=path)
    try:
        reader = GGUFReader(path)
        ends = [int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors]
    except (ValueError, KeyError, IndexError, OSError, OverflowError, MemoryError) as error:
        raise ModelError("not a readable GGUF file", where=path, got=first_line(error)) from error
    if max(ends, default=0) > path.stat().st_size:
        raise ModelError("this GGUF file is cut off", where=path, expected=f">= {max(ends):,} bytes")
    return reader


def _shards(path: Path) -> list[Path]:
    """All files of a split GGUF, or the file itself."""
    found = _SHARD.search(path.name)
    if found is None:
        return [path]
    stem, count = path.name[: found.start()], int(found[1])
    return [path.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(_aligned(file.tell(), alignment) - file.tell()))


def _copy(read: BinaryIO, write: BinaryIO, size: int) -> None:
    for start in range(0, size, 2**20):
        write.write(read.read(min(2**20, size - start)))
