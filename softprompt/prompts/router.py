"""Routes each text to one of several soft prompts with a linear layer over the mean of the text's embeddings.

On disk a router is a folder with router.safetensors and router.json, which names the K prompts and the base model.

Shapes: K prompts, H embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from pydantic import BaseModel
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from softprompt.errors import DataError, StoreError, WrongBaseError
from softprompt.files import read_json, read_tensors, recover_folder, write_folder, write_json
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.geometry import Geometry
from softprompt.prompts.store import PROMPT_NAME, ROUTER

ROUTER_TENSORS = "router.safetensors"
_FORMAT_VERSION = 1  # of router.json


@final
@dataclass(frozen=True, eq=False)
class Router:
    """`weights` [K, H] float32, the `names` of the K prompts, and the `base` model whose embeddings it reads."""

    weights: Tensor
    names: tuple[str, ...]
    base: Geometry

    def choose(self, lm: FrozenLM, ids: Sequence[int]) -> int:
        """The number of the prompt for this text. Raises DataError for a text of no tokens."""
        return int((self.weights.to(lm.device) @ pooled(lm, ids)).argmax())


class _RouterFile(BaseModel):
    """The contents of router.json."""

    format_version: object
    names: tuple[str, ...]
    base: dict[str, object]


@torch.no_grad()
def pooled(lm: FrozenLM, ids: Sequence[int]) -> Tensor:
    """The router's input for a text: the mean [H] of its tokens' embeddings, in float32."""
    if not ids:
        raise DataError("an empty text cannot be routed to a soft prompt", hint="name a soft prompt")
    return lm.embed(list(ids)).float().mean(0)


def save_router(folder: Path, router: Router, *, overwrite: bool = False) -> None:
    """Write the router atomically. Raises StoreError if the folder exists, or for an impossible prompt name."""
    if problem := _problem(router.names, tuple(router.weights.shape), router.base):
        raise StoreError(problem, where=folder)

    def fill(scratch: Path) -> None:
        save_file({"weights": router.weights.detach().cpu().float().contiguous()}, scratch / ROUTER_TENSORS)
        contents = {"format_version": _FORMAT_VERSION, "names": list(router.names), "base": router.base.to_dict()}
        write_json(scratch / ROUTER, contents)

    write_folder(folder, fill, overwrite=overwrite)


def load_router(folder: Path, geometry: Geometry | None = None) -> Router:
    """The router, checked. Raises StoreError, or WrongBaseError if it was trained for another base model."""
    recover_folder(folder)
    path = folder / ROUTER
    data = read_json(path)
    try:
        contents = _RouterFile.model_validate(data)
        base = Geometry.from_dict(contents.base)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"not a router: {error}", where=path) from error
    names = contents.names
    if contents.format_version != _FORMAT_VERSION:
        raise StoreError("unknown format version", where=path, expected=_FORMAT_VERSION, got=contents.format_version)
    if geometry is not None and (reason := geometry.differs(base)):
        got = f"{geometry.base}: {reason}"
        raise WrongBaseError("this router belongs to another base model", where=folder, expected=base.base, got=got)

    def check(header: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        for name, (shape, dtype) in header.items():
            problem = _problem(names, shape, base) if (name, dtype) == ("weights", "F32") else f"{name} {dtype} is odd"
            if problem:
                raise StoreError(problem, where=folder / ROUTER_TENSORS)

    tensors = read_tensors(folder / ROUTER_TENSORS, check)
    if "weights" not in tensors or not tensors["weights"].isfinite().all():
        raise StoreError("the weights are missing or not finite", where=folder / ROUTER_TENSORS)
    return Router(tensors["weights"], names, base)


def _problem(names: tuple[object, ...], shape: tuple[int, ...], base: Geometry) -> str | None:
    """The reason why a router cannot have these names and weights, if any. Names may not leave the prompts' folder."""
    if not names or not all(isinstance(name, str) and PROMPT_NAME.fullmatch(name) for name in names):
        return f"these are not names of soft prompts: {names}"
    return None if shape == (len(names), base.hidden) else f"weights of shape {shape} for {len(names)} names"
