"""Compiled prefixes: the keys and values of lead, virtual tokens and follow, computed once and stored in a file.

Prompts of all forms compile to the same thing, so an engine with a key/value cache of its own needs to know no form,
layout or embedding. The file name is a digest of the content. So a new version of a prompt never matches cached blocks
of the old one, and a file that was read once never changes.

Shapes: L layers, T tokens of the prefix, K key/value heads, D head size. Keys are post-RoPE at positions 0…T-1.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from softprompt.errors import StoreError, UnsupportedModelError
from softprompt.files import READABLE, writing
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import compute_keys_values

PREFIX_ID = re.compile(r"[0-9a-f]{32}")
PLACEHOLDER_ID = 0  # the token id that stands for each token of a prefix in a request to vLLM
_PREFIX_TENSOR = "prefix"  # [L, 2, T, K, D]: keys, then values


def compile_prefix(lm: FrozenLM, prefix: Prefix) -> Tensor:
    """[L, 2, T, K, D] on the CPU, in the model's dtype.

    Raises:
        DataError: the prefix is longer than the context.
        UnsupportedModelError: the layers' keys and values differ in shape.
    """
    layers = [kv for kv in compute_keys_values(lm, prefix) if kv is not None]
    shapes = {tuple(states.shape) for kv in layers for states in kv}
    if len(shapes) != 1 or len(layers) != len(lm.geometry.layers):
        what = "the layers' keys and values differ in shape"
        raise UnsupportedModelError(what, where=lm.name, got=sorted(shapes))
    stacked_L2KTD = torch.stack([torch.stack([keys[0], values[0]]) for keys, values in layers])
    return stacked_L2KTD.transpose(2, 3).contiguous().cpu()


def prefix_digest(kv_L2TKD: Tensor) -> str:
    """The id of a compiled prefix: 32 hex digits of a hash of shape, dtype and bytes."""
    sha = hashlib.sha256(f"{tuple(kv_L2TKD.shape)} {kv_L2TKD.dtype}\n".encode())
    sha.update(kv_L2TKD.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:32]


def write_prefix(folder: Path, kv_L2TKD: Tensor) -> str:
    """Write a compiled prefix unless it exists; returns its id. Raises StoreError."""
    name = prefix_digest(kv_L2TKD)
    target = prefix_path(folder, name)
    if not target.exists():
        with writing(target), tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch:
            new = Path(scratch) / target.name
            save_file({_PREFIX_TENSOR: kv_L2TKD}, new)
            new.chmod(READABLE)
            os.replace(new, target)
    return name


def prefix_path(folder: Path, name: str) -> Path:
    """The file of an id."""
    assert PREFIX_ID.fullmatch(name), "an id, not a path"
    return folder / f"{name}.safetensors"


def prefix_shape(folder: Path, name: object) -> tuple[int, int, int, int] | None:
    """(L, T, K, D) of a compiled prefix; None for an invalid id, and for a missing or damaged file."""
    if not isinstance(name, str) or not PREFIX_ID.fullmatch(name):
        return None
    try:
        with safe_open(prefix_path(folder, name), "pt") as file:
            sizes = file.get_slice(_PREFIX_TENSOR).get_shape()
    except (OSError, SafetensorError):
        return None
    return (sizes[0], *sizes[2:]) if len(sizes) == 5 and sizes[1] == 2 and min(sizes) > 0 else None


def read_prefix(folder: Path, name: str, layers: Sequence[int], heads: slice) -> Tensor:
    """[len(layers), 2, T, len(heads), D]: one process's part of a compiled prefix.

    Raises StoreError for a missing or damaged file, or one without these layers.
    """
    path = prefix_path(folder, name)
    try:
        with safe_open(path, "pt") as file:
            entry = file.get_slice(_PREFIX_TENSOR)
            return torch.stack([entry[layer][:, :, heads] for layer in layers])
    except (OSError, SafetensorError, IndexError) as error:
        raise StoreError(f"the compiled prefix cannot be read: {error}", where=path) from error
