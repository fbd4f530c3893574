"""The state of a training run on disk, complete enough to go on bitwise: safetensors and JSON only.

A checkpoint is a folder checkpoint-NNNNNN/ that appears whole or not at all. The newest readable one counts; older
ones are removed only after a newer one is complete.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from softprompt.errors import CheckpointError, StoreError
from softprompt.files import read_json, read_tensors, recover_folder, write_folder, write_json

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        run: the digest of everything that must be the same (settings, data, model); another run is refused.
        step: finished optimiser steps.
        tensors: flat names to tensors (method, best method, optimiser, random generators).
        facts: the rest, as JSON data.
    """

    run: str
    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write the checkpoint, then remove all but the newest `KEEP` up to it.

    Later ones are removed too: they could not be read, or are of a run that this one replaces.

    Raises StoreError if the disk refuses.
    """
    target = folder / f"checkpoint-{checkpoint.step:06d}"

    def fill(scratch: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        save_file(tensors, scratch / "state.safetensors", metadata={"format": "pt"})
        write_json(
            scratch / "state.json",
            {"run": checkpoint.run, "step": checkpoint.step, "facts": checkpoint.facts},
        )

    write_folder(target, fill, overwrite=True)
    found = _folders(folder)
    kept = [path for path in found if _step(path) <= checkpoint.step][-KEEP:]
    left_by_the_killed = folder.glob(".checkpoint-*")
    for path in [*(path for path in found if path not in kept), *left_by_the_killed]:
        shutil.rmtree(path, ignore_errors=True)
    return target


def latest_checkpoint(folder: Path, run: str) -> Checkpoint:
    """The newest readable checkpoint of the run in `folder`.

    Raises CheckpointError: none there, none readable, or it belongs to another run.
    """
    errors = []
    for path in reversed(_folders(folder)):
        try:
            data = read_json(path / "state.json")
            tensors = read_tensors(path / "state.safetensors")
            found = Checkpoint(data["run"], data["step"], tensors, data["facts"])
        except (StoreError, KeyError, TypeError) as error:
            errors.append(f"{path.name}: {error}")
            continue
        if found.run != run:
            raise CheckpointError(
                "the checkpoint belongs to a run with other settings, data or base model",
                where=path,
                hint="repeat the command of that run with --resume, or start anew with --overwrite",
            )
        return found
    got = "; ".join(errors) or "no checkpoint"
    raise CheckpointError("nothing to resume", where=folder, got=got, hint="start the run without --resume")


def latest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint folder, readable or not; None if there is none."""
    found = _folders(folder)
    return _step(found[-1]) if found else None


def _folders(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first, one that died while it was replaced put back."""
    for old in folder.glob(".checkpoint-*.old"):
        recover_folder(folder / old.name.removeprefix(".").removesuffix(".old"))
    return sorted((p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdecimal()), key=_step)


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def flatten(tree: Any, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts and lists into tensors by path, and the same tree with each tensor replaced by its path."""
    if isinstance(tree, Tensor):
        return {prefix: tree}, {"tensor": prefix}
    if isinstance(tree, Mapping):
        parts = {str(key): flatten(value, f"{prefix}.{key}") for key, value in tree.items()}
        tensors = {name: tensor for found, _ in parts.values() for name, tensor in found.items()}
        return tensors, {"dict": {key: rest for key, (_, rest) in parts.items()}}
    if isinstance(tree, (list, tuple)):
        items = [flatten(value, f"{prefix}.{i}") for i, value in enumerate(tree)]
        tensors = {name: tensor for found, _ in items for name, tensor in found.items()}
        return tensors, {"list": [rest for _, rest in items]}
    return {}, {"value": tree}


def unflatten(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """The inverse of `flatten`; dict keys that were whole numbers become whole numbers again."""
    (kind, value), *_ = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {int(k) if k.isdecimal() else k: unflatten(tensors, rest) for k, rest in value.items()}
    if kind == "list":
        return [unflatten(tensors, rest) for rest in value]
    return value


def random_state(device: torch.device) -> Any:
    """The state of every random generator that training may draw from, as a tree for `flatten`."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Any, device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"].to(torch.uint8))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
