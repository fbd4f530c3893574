"""Checkpoints: the complete state of a training run, as safetensors and JSON, to resume from bitwise.

A checkpoint is a folder checkpoint-NNNNNN/ that is written atomically. The newest readable one counts; older ones are
removed only after a newer one is complete.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from softprompt.errors import CheckpointError, StoreError
from softprompt.files import read_json, read_tensors, recover_folder, write_folder, write_json

OTHER_RUN = "the checkpoint belongs to a run with other settings, data or base model"
KEEP = 2  # checkpoints of a run that stay on disk

# Nested dicts and lists of tensors and JSON values, as optimizers' `state_dict` has them: PyTorch does not type it.
Tree: TypeAlias = Any


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run.

    Attributes:
        run: the digest of everything that must be the same (settings, data, model); another run is refused.
        step: finished optimizer steps.
        tensors: flat names to tensors (method, best method, optimizer, random generators).
        data: the rest, as JSON data; called "facts" on disk.
    """

    run: str
    step: int
    tensors: dict[str, Tensor]
    data: dict[str, Tree]


class _StateFile(BaseModel):
    """The contents of state.json."""

    run: str
    step: int
    facts: dict[str, Tree]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write the checkpoint, then remove all but the newest `KEEP` up to it.

    Checkpoints of later steps are removed, too: they were not readable, or belong to a run that this one replaces.

    Raises StoreError if the disk refuses.
    """
    target = folder / f"checkpoint-{checkpoint.step:06d}"

    def fill(scratch: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        save_file(tensors, scratch / "state.safetensors", metadata={"format": "pt"})
        write_json(
            scratch / "state.json",
            {"run": checkpoint.run, "step": checkpoint.step, "facts": checkpoint.data},
        )

    write_folder(target, fill, overwrite=True)
    folders = _folders(folder)
    kept = [path for path in folders if _step(path) <= checkpoint.step][-KEEP:]
    unfinished = folder.glob(".checkpoint-*")  # of processes that were killed while writing
    for path in [*(path for path in folders if path not in kept), *unfinished]:
        shutil.rmtree(path, ignore_errors=True)
    return target


def latest_checkpoint(folder: Path, run: str) -> Checkpoint:
    """The newest readable checkpoint of the run in `folder`.

    Raises CheckpointError: none there, none readable, or it belongs to another run.
    """
    errors = []
    for path in reversed(_folders(folder)):
        try:
            state = _StateFile.model_validate(read_json(path / "state.json"))
            tensors = read_tensors(path / "state.safetensors")
            checkpoint = Checkpoint(state.run, state.step, tensors, state.facts)
        except (StoreError, ValidationError) as error:
            errors.append(f"{path.name}: {error}")
            continue
        if checkpoint.run != run:
            raise CheckpointError(
                OTHER_RUN,
                where=path,
                hint="repeat the command of that run with --resume, or start anew with --overwrite",
            )
        return checkpoint
    got = "; ".join(errors) or "no checkpoint"
    raise CheckpointError("nothing to resume", where=folder, got=got, hint="start the run without --resume")


def latest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint folder, readable or not; None if there is none."""
    folders = _folders(folder)
    return _step(folders[-1]) if folders else None


def _folders(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first, after restoring one whose replacement was interrupted."""
    for old in folder.glob(".checkpoint-*.old"):
        recover_folder(folder / old.name.removeprefix(".").removesuffix(".old"))
    return sorted((p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdecimal()), key=_step)


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def flatten(tree: Tree, prefix: str = "") -> tuple[dict[str, Tensor], Tree]:
    """Split nested dicts and lists into tensors by path, and the same tree with each tensor replaced by its path."""
    if isinstance(tree, Tensor):
        return {prefix: tree}, {"tensor": prefix}
    if isinstance(tree, Mapping):
        parts = {str(key): flatten(value, f"{prefix}.{key}") for key, value in tree.items()}
        tensors = {name: tensor for leaves, _ in parts.values() for name, tensor in leaves.items()}
        return tensors, {"dict": {key: rest for key, (_, rest) in parts.items()}}
    if isinstance(tree, (list, tuple)):
        items = [flatten(value, f"{prefix}.{i}") for i, value in enumerate(tree)]
        tensors = {name: tensor for leaves, _ in items for name, tensor in leaves.items()}
        return tensors, {"list": [rest for _, rest in items]}
    return {}, {"value": tree}


def unflatten(tensors: Mapping[str, Tensor], tree: Tree) -> Tree:
    """The inverse of `flatten`; dict keys that were whole numbers become whole numbers again."""
    kind, value = next(iter(tree.items()))
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {int(k) if k.isdecimal() else k: unflatten(tensors, rest) for k, rest in value.items()}
    if kind == "list":
        return [unflatten(tensors, rest) for rest in value]
    return value


def random_state(device: torch.device) -> Tree:
    """The state of every random generator that training may draw from, as a tree for `flatten`."""
    numpy_state: list[Tree] = list(np.random.get_state(legacy=True))
    numpy_state[1] = torch.from_numpy(np.asarray(numpy_state[1]).astype(np.int64))
    state: dict[str, Tree] = {
        "torch": torch.get_rng_state(),
        "numpy": numpy_state,  # name, keys, position, has_gauss, cached gauss
        "python": random.getstate(),  # version, internal state, cached gauss
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Tree, device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"].to(torch.uint8))
    numpy_state = list(state["numpy"])
    numpy_state[1] = numpy_state[1].numpy().astype(np.uint32)
    np.random.set_state(tuple(numpy_state))
    python_state = list(state["python"])
    python_state[1] = tuple(python_state[1])
    random.setstate(tuple(python_state))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
