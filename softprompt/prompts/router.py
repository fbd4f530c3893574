"""Which of several soft prompts a text is answered with: a linear layer over the mean of the text's embeddings.

On disk a folder of its own: router.safetensors and router.json, which names the K prompts, the base model, and no code.

Shapes: K prompts, H embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors.torch import save_file
from torch import Tensor

from softprompt.errors import DataError, StoreError, WrongBaseError
from softprompt.files import read_json, read_tensors, recover_folder, write_folder, write_json
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.geometry import Geometry
from softprompt.prompts.store import NAME, ROUTER

TENSORS, FACTS, FORMAT_VERSION = "router.safetensors", ROUTER, 1


@final
@dataclass(frozen=True, eq=False)
class Router:
    """`weights` [K, H] float32, the `names` of the K prompts, and the base model whose embeddings it reads."""

    weights: Tensor
    names: tuple[str, ...]
    base: Geometry

    def choose(self, lm: FrozenLM, ids: Sequence[int]) -> int:
        """The number of the prompt for this text. Raises DataError for a text of no tokens."""
        return int((self.weights.to(lm.device) @ pooled(lm, ids)).argmax())


@torch.no_grad()
def pooled(lm: FrozenLM, ids: Sequence[int]) -> Tensor:
    """What a router sees of a text: the mean [H] of its tokens' embeddings, in float32."""
    if not ids:
        raise DataError("an empty text cannot be routed to a soft prompt", hint="name a soft prompt")
    return lm.embed(list(ids)).float().mean(0)


def save_router(folder: Path, router: Router, *, overwrite: bool = False) -> None:
    """Write it, all or nothing. Raises StoreError if the folder is there, or for names no soft prompt can have."""
    if problem := _problem(router.names, tuple(router.weights.shape), router.base):
        raise StoreError(problem, where=folder)

    def fill(scratch: Path) -> None:
        save_file({"weights": router.weights.detach().cpu().float().contiguous()}, scratch / TENSORS)
        facts = {"format_version": FORMAT_VERSION, "names": list(router.names), "base": router.base.to_dict()}
        write_json(scratch / FACTS, facts)

    write_folder(folder, fill, overwrite=overwrite)


def load_router(folder: Path, geometry: Geometry | None = None) -> Router:
    """The router, checked. Raises StoreError, or WrongBaseError if it was made for another base model than this."""
    recover_folder(folder)
    facts = read_json(folder / FACTS)
    try:
        version, names, base = facts["format_version"], tuple(facts["names"]), Geometry.from_dict(facts["base"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"not a router: {error}", where=folder / FACTS) from error
    if version != FORMAT_VERSION:
        raise StoreError("unknown format version", where=folder / FACTS, expected=FORMAT_VERSION, got=version)
    if geometry is not None and (reason := geometry.differs(base)):
        got = f"{geometry.base}: {reason}"
        raise WrongBaseError("this router belongs to another base model", where=folder, expected=base.base, got=got)

    def check(name: str, shape: tuple[int, ...], dtype: str) -> None:
        problem = _problem(names, shape, base) if (name, dtype) == ("weights", "F32") else f"{name} {dtype} is odd"
        if problem:
            raise StoreError(problem, where=folder / TENSORS)

    tensors = read_tensors(folder / TENSORS, check)
    if "weights" not in tensors or not tensors["weights"].isfinite().all():
        raise StoreError("the weights are missing or not finite", where=folder / TENSORS)
    return Router(tensors["weights"], names, base)


def _problem(names: tuple[object, ...], shape: tuple[int, ...], base: Geometry) -> str | None:
    """What is wrong with a router of these facts: a name may not lead out of the folder that prompts are kept in."""
    if not names or not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
        return f"these are not names of soft prompts: {names}"
    return None if shape == (len(names), base.hidden) else f"weights of shape {shape} for {len(names)} names"
