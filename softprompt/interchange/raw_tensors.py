"""Reads soft prompts that are nothing but a tensor [P, H], as training loops of one's own save them.

A `.safetensors` file, or a `torch.save` file of a tensor, a dict of tensors or a state dict, nested or not. The table
of virtual tokens is recognized by the base model's width, and only if nothing else in the file could be one. A file of
tables alone holds several prompts, by name.

Shapes: P virtual tokens, H embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from softprompt.errors import StoreError
from softprompt.interchange.base import ImportedPrompt, embedding_prompt
from softprompt.interchange.foreign_file import ForeignFile
from softprompt.interchange.registry import Format, in_known_folder, register_format
from softprompt.models.geometry import Geometry
from softprompt.prompts.base import Shape

_NAME = "tensors"
_DEPTH = 4  # of nested dicts
_MOST = 10_000  # tensors in a file
_NOT_LEARNED = ("optim", "ema")  # what a dict of tensors beside the learned ones is called, at its beginning
_FLOATS = ("F16", "BF16", "F32", "F64")


def _matches(file: ForeignFile) -> bool:
    if not file.path.is_file() or in_known_folder(file.path):
        return False
    return file.is_safetensors or any(True for _ in _named(file.torch_object))


def read(file: ForeignFile, geometry: Geometry) -> list[ImportedPrompt]:
    """The table of virtual tokens in the file, or one prompt for each table if it holds nothing else.

    Raises StoreError if there is no table, or if it cannot be told from other tensors.
    """
    tensors = {} if file.is_safetensors else dict(_named(file.torch_object))
    shapes = _shapes(file.path) if file.is_safetensors else {name: _shape(tensor) for name, tensor in tensors.items()}
    tables = [name for name, shape in shapes.items() if len(shape) == 2]
    chosen = [name for name in tables if shapes[name][1] == geometry.hidden] or tables
    if not chosen:
        shown = ", ".join(f"{name} {shape or 'no floats'}" for name, shape in list(shapes.items())[:6])
        raise StoreError("no table of virtual tokens", where=file.path, expected="[P, H], floats", got=shown[:300])
    if len(chosen) > 1 and len(chosen) < len(shapes):
        raise StoreError(
            "several tensors could be the table of virtual tokens",
            where=file.path,
            got=", ".join(chosen[:6])[:300],
            hint="save that tensor alone: torch.save(tensor, FILE), or safetensors",
        )
    prompts: list[ImportedPrompt] = []
    for name in chosen:
        tensor = _load(file.path, name) if file.is_safetensors else tensors[name]
        prompt = embedding_prompt(tensor.reshape(shapes[name]), f"{file.path}: {name}"[:200])
        method: dict[str, object] = {"name": "prompt_tuning", "imported_from": _NAME}
        task = name if len(chosen) > 1 else ""
        prompts.append(ImportedPrompt(prompt, {**method, "task": task} if task else method, task=task))
    return prompts


def _named(value: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts, by dotted names; a tensor alone is called "tensor"."""
    if isinstance(value, Tensor):
        yield name or "tensor", value
    elif isinstance(value, Mapping) and depth < _DEPTH:
        for key, inner in value.items():
            if not str(key).lower().startswith(_NOT_LEARNED):
                yield from _named(inner, f"{name}.{key}" if name else str(key), depth + 1)


def _shape(tensor: Tensor) -> Shape:
    """That of the table that it may be, without a leading 1; () for what holds no floats."""
    return _without_batch(tuple(tensor.shape)) if tensor.is_floating_point() else ()


def _without_batch(shape: Shape) -> Shape:
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _shapes(path: Path) -> dict[str, Shape]:
    """As `_shape`, of every tensor of a safetensors file, none of which is loaded."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > _MOST:
                raise StoreError("too many tensors", where=path, expected=f"<= {_MOST}", got=len(names))
            entries = {name: file.get_slice(name) for name in names}
            return {
                name: _without_batch(tuple(entry.get_shape())) if entry.get_dtype() in _FLOATS else ()
                for name, entry in entries.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreError(f"damaged safetensors file: {error}", where=path, hint="restore it from its source") from error


def _load(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


register_format(Format(_NAME, _matches, read, torch_keys="a tensor [P, H]", last=True))
