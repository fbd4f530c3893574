"""A copy of a base model with P more tokens, whose embeddings are the virtual tokens.

A model that multiplies by the embedding for its logits (tied) gets output weights of its own. Their new rows are the
mean of all rows: the logit of a virtual token is the mean of all logits. So it is below the largest, and greedy
decoding never emits a virtual token; and since exp(mean(x)) ≤ mean(exp(x)), its probability is at most 1/V, in practice
some powers of ten less. `suppress_tokens` in generation_config.json makes it exactly 0 in Transformers. Where the
output has a bias, the new entries are so low that the probability is 0 everywhere.

Shapes: P virtual tokens, V rows of the table, H width.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from softprompt.errors import StoreError, UnsupportedModelError
from softprompt.export.weight_files import NUMBER_TYPES, NewTable, StoredTensor, copy_file, read_header, write_weights
from softprompt.files import read_json, write_json
from softprompt.interchange.virtual_tokens import VIRTUAL_TOKENS
from softprompt.json_types import JSONObject
from softprompt.models.frozen_lm import FrozenLM

INDEX, GENERATION = "model.safetensors.index.json", "generation_config.json"
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".safetensors")
_NO_WEIGHTS = ("adapter", VIRTUAL_TOKENS)  # safetensors files that may lie beside a model's
_MULTIPLE = 64  # of rows, where the base keeps to it
_NEVER = -3e4  # a logit that leaves no probability, in float16 too
_LIMIT = 16 * 2**20  # bytes of a file beside the weights, which is copied


@dataclass(frozen=True)
class BaseFiles:
    """A base model's folder.

    Attributes:
        table: its embeddings [V, H].
        head: its output weights [V, H]; None if it multiplies by `table`.
        bias: of the output [V]; None for most models.
        head_name: how the output weights are named in files.
        tensors: all tensors by the file that they are in.
        metadata: of each of these files.
    """

    folder: Path
    table: StoredTensor
    head: StoredTensor | None
    bias: StoredTensor | None
    head_name: str
    tensors: dict[Path, list[StoredTensor]]
    metadata: dict[Path, JSONObject]

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.end - tensor.begin for held in self.tensors.values() for tensor in held)


@dataclass(frozen=True)
class NewTokens:
    """The tokens that are added.

    Attributes:
        strings: one a virtual token; the tokenizer reads each as one id.
        ids: of these, one after another.
        n_rows: of the new table.
    """

    strings: tuple[str, ...]
    ids: tuple[int, ...]
    n_rows: int


def base_files(folder: Path, lm: FrozenLM) -> BaseFiles:
    """Find the tables of a model in its files.

    Raises UnsupportedModelError for weights in other files than safetensors, or tables that are not there.
    """
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith(_NO_WEIGHTS))
    if not files:
        what = "the base model's weights are not in safetensors files"
        raise UnsupportedModelError(what, where=folder, hint="save it with save_pretrained, and give that folder")
    tensors, metadata = dict[Path, list[StoredTensor]](), dict[Path, JSONObject]()
    for path in files:
        held, metadata[path] = read_header(path)
        tensors[path] = sorted(held.values(), key=lambda tensor: tensor.begin)
    everything = [tensor for held in tensors.values() for tensor in held]
    weight = lm.embedding_table
    table = _find(everything, weight, "embed_tokens", lm)
    names = {id(module): name for name, module in lm.hf_model.named_modules()}
    output = lm.hf_model.get_output_embeddings()
    head_weight = getattr(output, "weight", None)
    if output is None or not isinstance(head_weight, Tensor) or id(output) not in names:
        raise UnsupportedModelError("the model has no output weights that could grow", where=lm.name)
    head_name = names[id(output)]
    tied = head_weight is lm.embedding.weight
    head = None if tied else _find(everything, head_weight, head_name, lm, but=table)
    given = getattr(output, "bias", None)
    bias = _find(everything, given, head_name, lm) if isinstance(given, Tensor) else None
    return BaseFiles(folder, table, head, bias, f"{head_name}.weight", tensors, metadata)


def new_tokens(lm: FrozenLM, name: str, n_tokens: int) -> NewTokens:
    """Strings and ids for P virtual tokens: behind the tokenizer's last id, in rows that are padding or new."""
    vocabulary: dict[str, int] = lm.tokenizer.get_vocab()
    rows = lm.geometry.vocab
    first = max(vocabulary.values()) + 1
    strings = tuple(f"<|{name}_{i}|>" for i in range(n_tokens))
    if taken := [string for string in strings if string in vocabulary]:
        what = "the base model has a token of that name already"
        raise UnsupportedModelError(what, where=lm.name, got=taken[0], hint="give the soft prompt another name")
    n_rows = max(rows, first + n_tokens)
    if rows % _MULTIPLE == 0:
        n_rows += -n_rows % _MULTIPLE
    return NewTokens(strings, tuple(range(first, first + n_tokens)), n_rows)


def write_model(out: Path, base: BaseFiles, lm: FrozenLM, added: NewTokens, rows_PH: Tensor) -> None:
    """Write the copy into an empty folder.

    Args:
        rows_PH: rows of the table that the model reads as the virtual tokens.
    """
    old = base.table.shape[0]
    tables = {base.table.name: NewTable(base.table, dict(zip(added.ids, rows_PH, strict=True)), added.n_rows)}
    head = base.head or base.table
    unlikely = sorted({*added.ids, *range(old, added.n_rows)})
    head_name = base.head.name if base.head else base.head_name
    mean_H = _mean_row(head)
    tables[head_name] = NewTable(head, dict.fromkeys(unlikely, mean_H), added.n_rows)
    if base.bias is not None:
        tables[base.bias.name] = NewTable(base.bias, dict.fromkeys(unlikely, torch.tensor(_NEVER)), added.n_rows)
    places = {tensor.name: path for path, held in base.tensors.items() for tensor in held}
    places.setdefault(head_name, base.table.file)
    for path, held in base.tensors.items():
        mine = {name: table for name, table in tables.items() if places[name] == path}
        if mine:
            write_weights(out / path.name, held, mine, base.metadata[path])
        else:
            copy_file(path, out / path.name)
    _copy_rest(out, base)
    _edit_configs(out, added, old)
    _write_index(out, base, added, places)
    _save_tokenizer(out, lm, added)


def copy_size(base: BaseFiles, added: NewTokens) -> int:
    """Bytes that the copy's weights take."""
    longer = (added.n_rows - base.table.shape[0]) * base.table.row_bytes * 2
    return base.size + longer + (0 if base.head else base.table.shape[0] * base.table.row_bytes)


def check_room(out: Path, needed: int) -> None:
    """Raise StoreError if the disk has less than these bytes free."""
    nearest = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        got = f"{free / 1e9:.1f} GB free"
        raise StoreError(
            "the disk has no room for a copy of the model", where=out, expected=f"{needed / 1e9:.1f} GB", got=got
        )


def _find(
    tensors: Sequence[StoredTensor], weight: Tensor, name: str, lm: FrozenLM, but: StoredTensor | None = None
) -> StoredTensor:
    """The stored tensor with these numbers; of several, one whose name is like `name`.

    Raises UnsupportedModelError if none has them: quantized, or renamed and changed while it was loaded.
    """
    probes = sorted({0, len(weight) // 2, len(weight) - 1})
    found: list[StoredTensor] = []
    for tensor in tensors:
        if tensor.shape != tuple(weight.shape) or tensor.dtype not in NUMBER_TYPES or tensor is but:
            continue
        same = [torch.equal(tensor.rows(i, i + 1)[0].to(weight.dtype), weight[i].detach().cpu()) for i in probes]
        found += [tensor] if all(same) else []
    last = name.rpartition(".")[2]
    found.sort(key=lambda tensor: last not in tensor.name)
    if not found:
        what = "the model's files hold no such table with the numbers that were loaded"
        raise UnsupportedModelError(
            what, where=lm.name, got=f"{name} {tuple(weight.shape)}", hint="an unquantized base"
        )
    return found[0]


def _mean_row(table: StoredTensor) -> Tensor:
    """[H] float32: the mean of all rows."""
    total = torch.zeros(table.shape[1:], dtype=torch.float64)
    for piece in table.pieces():
        total += piece.double().sum(0)
    return (total / table.shape[0]).float()


def _copy_rest(out: Path, base: BaseFiles) -> None:
    """Configs, licenses and what else lies beside the weights; no folders, no other copies of the weights."""
    for path in base.folder.iterdir():
        plain = path.is_file() and not path.name.startswith(".") and path.resolve().stat().st_size < _LIMIT
        if plain and not path.name.endswith(_OTHER_WEIGHTS):
            copy_file(path, out / path.name)


def _edit_configs(out: Path, added: NewTokens, old: int) -> None:
    config = cast("JSONObject", read_json(out / "config.json"))
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            if part is config or "tie_word_embeddings" in part:
                part["tie_word_embeddings"] = False
            if part.get("vocab_size") == old:
                part["vocab_size"] = added.n_rows
    write_json(out / "config.json", config)
    generation = read_json(out / GENERATION) if (out / GENERATION).exists() else {}
    assert isinstance(generation, dict), "Transformers wrote an object"
    suppressed = generation.get("suppress_tokens")
    generation["suppress_tokens"] = [*(suppressed if isinstance(suppressed, list) else []), *added.ids]
    write_json(out / GENERATION, generation)


def _write_index(out: Path, base: BaseFiles, added: NewTokens, places: Mapping[str, Path]) -> None:
    """Which file holds which tensor. Of a single file, too: vLLM else reads every safetensors file in the folder."""
    index: dict[str, object] = {
        "metadata": {"total_size": copy_size(base, added)},
        "weight_map": {name: path.name for name, path in sorted(places.items())},
    }
    write_json(out / INDEX, index)


def _save_tokenizer(out: Path, lm: FrozenLM, added: NewTokens) -> None:
    """The tokenizer with the new strings as special tokens.

    Raises UnsupportedModelError if it gives them other ids.
    """
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_tokens(list(added.strings), special_tokens=True)
    got = [tokenizer.convert_tokens_to_ids(string) for string in added.strings]
    if got != list(added.ids):
        what = "the tokenizer gives the new tokens other ids than the rows behind its last one"
        raise UnsupportedModelError(what, where=lm.name, expected=f"{added.ids[0]} …", got=str(got[:3]))
    tokenizer.save_pretrained(out)
