"""Reads Cartridges: keys and values of virtual tokens per layer, in a `torch.save` file of `nn.ParameterList`s.

Eyuboglu et al.: Cartridges. 2025. https://arxiv.org/abs/2506.06266
Format: https://github.com/HazyResearch/cartridges (cache.py, `TrainableCache.save`): `trainable_keys` and
`trainable_values`, and the first tokens that were not trained under `fixed_…` (June 2025) or `frozen_…` (later); each
a list of L tensors [1, K, tokens, D]. Text starts at position P there too (`position_ids + num_cartridge_tokens`).

Their own readers have traps that this one does not share: without frozen tokens the first gives no layers at all,
and the second takes the number of heads for the number of frozen tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from softprompt.errors import StoreError
from softprompt.interchange.base import ImportedPrompt, shown_path, usable
from softprompt.interchange.foreign_file import ForeignFile
from softprompt.interchange.registry import Format, register_format
from softprompt.interchange.safe_pickle import parameters
from softprompt.models.geometry import Geometry
from softprompt.prompts.kv_prompt import KVPrompt

_NAME = "cartridges"
_FROZEN = ("frozen", "fixed")  # prefixes of the tensors that are not trained, newest first


def _matches(file: ForeignFile) -> bool:
    saved = file.torch_object
    return isinstance(saved, dict) and {"trainable_keys", "trainable_values"} <= saved.keys()


def read(file: ForeignFile, geometry: Geometry) -> list[ImportedPrompt]:
    """The one prompt of the file; frozen tokens first."""
    saved, where = file.torch_object, file.path
    assert isinstance(saved, dict), "see _matches"
    _check_order(saved, where)
    keys, n_frozen = _whole(saved, "keys", where)
    values, _ = _whole(saved, "values", where)
    if len(keys) != len(values) or not keys:
        raise StoreError("keys and values of different layers", where=where, got=f"{len(keys)} and {len(values)}")
    method = {"name": "cartridge", "imported_from": _NAME, "frozen_tokens": n_frozen}
    return [ImportedPrompt(KVPrompt(tuple(zip(keys, values, strict=True))), method)]


def _whole(saved: Mapping[str, object], part: str, where: object) -> tuple[list[Tensor], int]:
    """Per layer [K, P, D], and how many of the P are frozen."""
    trained = parameters(saved[f"trainable_{part}"], f"{where}: trainable_{part}")
    name = next((f"{kind}_{part}" for kind in _FROZEN if saved.get(f"{kind}_{part}") is not None), None)
    still = [] if name is None else parameters(saved[name], f"{where}: {name}")
    if still and len(still) != len(trained):
        got = f"{len(still)} and {len(trained)}"
        raise StoreError(f"frozen and trained {part} of different layers", where=where, got=got)
    parts = list(zip(still, trained, strict=True)) if still else [(tensor,) for tensor in trained]
    for tensor in (tensor for layer in parts for tensor in layer):
        if tensor.ndim != 4 or tensor.shape[0] != 1 or not tensor.is_floating_point():
            raise StoreError(
                f"{part} of another shape", where=where, expected="[1, K, tokens, D]", got=shown_path(tensor)
            )
    try:
        whole = [usable(torch.cat(layer, dim=2)[0]) for layer in parts]
    except RuntimeError as error:
        raise StoreError(f"frozen and trained {part} do not fit together", where=where) from error
    return whole, still[0].shape[2] if still else 0


def _check_order(saved: Mapping[str, object], where: object) -> None:
    """Some forks freeze ranges anywhere; only a first range leaves the two lists in the order of the tokens."""
    ranges = saved.get("freeze_ranges")
    first = isinstance(ranges, list) and len(ranges) == 1 and isinstance(ranges[0], tuple) and ranges[0][:1] == (0,)
    if ranges and not first:
        raise StoreError("a cartridge with frozen tokens amid trained ones is not read", where=where)


register_format(
    Format(_NAME, _matches, read, torch_keys="trainable_keys and trainable_values (Cartridges)"),
)
