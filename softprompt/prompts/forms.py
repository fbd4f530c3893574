"""The two forms of a soft prompt. Whatever method made it, it is one of these two; nothing downstream knows methods.

Shapes: P virtual tokens, H embedding width, K key/value heads, D head size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from softprompt.errors import GeometryError
from softprompt.models.geometry import Geometry

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class EmbeddingPrompt:
    """Form 1: `embeddings` [P, H], fed to the base model in place of token embeddings."""

    embeddings: Tensor

    form: ClassVar[Literal["embedding"]] = "embedding"

    @property
    def n_tokens(self) -> int:
        return self.embeddings.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names they are stored under."""
        return {"embeddings": self.embeddings}


@dataclass(frozen=True, eq=False)
class KVPrompt:
    """Form 2: per layer (keys [K, P, D], values [K, P, D']) or None for a layer that has none.

    Keys are post-RoPE at positions 0…P-1; text starts at position P. An encoder–decoder's layers are those of its
    encoder, then its decoder, then its cross-attention (`Geometry.sites`); a prompt may leave out whole sites.
    """

    layers: tuple[tuple[Tensor, Tensor] | None, ...]

    form: ClassVar[Literal["kv"]] = "kv"

    @property
    def n_tokens(self) -> int:
        return next((layer[0].shape[1] for layer in self.layers if layer is not None), 0)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names they are stored under."""
        named: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            if layer is not None:
                named[f"layers.{i}.k"], named[f"layers.{i}.v"] = layer
        return named


Prompt = EmbeddingPrompt | KVPrompt
FORMS = {EmbeddingPrompt.form: EmbeddingPrompt, KVPrompt.form: KVPrompt}


def expected_shapes(form: str, n_tokens: int, geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """The tensor names and shapes that a prompt of this form and length must have on this base model."""
    if form == EmbeddingPrompt.form:
        return {"embeddings": (n_tokens, geometry.hidden)}
    shapes: dict[str, tuple[int, ...]] = {}
    for i, layer in enumerate(geometry.layers):
        if layer is not None:
            shapes[f"layers.{i}.k"] = (layer.kv_heads, n_tokens, layer.key_dim)
            shapes[f"layers.{i}.v"] = (layer.kv_heads, n_tokens, layer.value_dim)
    return shapes


def needed_shapes(form: str, n_tokens: int, geometry: Geometry, names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """`expected_shapes` of a prompt that has tensors of these names: every layer, or every layer of the sites in which
    it has one. A site is whole because all its layers share one attention mask."""
    shapes = expected_shapes(form, n_tokens, geometry)
    own = [{f"layers.{i}.k", f"layers.{i}.v"} for i in range(len(geometry.sites))]
    used = {site for site, pair in zip(geometry.sites, own, strict=True) if not pair.isdisjoint(names)}
    if form == EmbeddingPrompt.form or not used:
        return shapes
    left_out = {name for site, pair in zip(geometry.sites, own, strict=True) if site not in used for name in pair}
    return {name: shape for name, shape in shapes.items() if name not in left_out}


def check_fits(prompt: Prompt, geometry: Geometry) -> None:
    """Raise GeometryError unless every tensor has the shape, dtype and finite values the base model needs."""
    where = f"{prompt.form} prompt for {geometry.base}"
    tensors = prompt.tensors()
    shapes = needed_shapes(prompt.form, prompt.n_tokens, geometry, tensors)
    if prompt.n_tokens < 1:
        raise GeometryError("a soft prompt needs at least one virtual token", where=where)
    if tensors.keys() != shapes.keys():
        odd = sorted(tensors.keys() ^ shapes.keys())
        raise GeometryError("tensors missing or too many", where=where, got=", ".join(odd[:6]))
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise GeometryError(
                f"tensor {name} has the wrong shape",
                where=where,
                expected=shapes[name],
                got=tuple(tensor.shape),
            )
        if tensor.dtype not in DTYPES:
            raise GeometryError(f"tensor {name} has an unusable dtype", where=where, expected=DTYPES, got=tensor.dtype)
        if not torch.isfinite(tensor).all():
            raise GeometryError(f"tensor {name} holds NaN or infinite values", where=where)
    window = min((w for w in geometry.windows if w is not None), default=None)
    if window is not None and prompt.n_tokens > window:
        raise GeometryError(
            "the prompt is longer than the sliding window",
            where=where,
            expected=f"<= {window}",
            got=prompt.n_tokens,
        )


def from_tensors(form: str, tensors: Mapping[str, Tensor], geometry: Geometry) -> Prompt:
    """The prompt with these tensors, names as in `Prompt.tensors`. Does not check: see `check_fits`."""
    if form == EmbeddingPrompt.form:
        return EmbeddingPrompt(tensors["embeddings"])
    there = [f"layers.{i}.k" in tensors for i in range(len(geometry.layers))]
    layers = ((tensors[f"layers.{i}.k"], tensors[f"layers.{i}.v"]) if on else None for i, on in enumerate(there))
    return KVPrompt(tuple(layers))


def to(prompt: Prompt, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Prompt:
    """The prompt on another device or in another dtype; gradients flow through."""
    if isinstance(prompt, EmbeddingPrompt):
        return EmbeddingPrompt(prompt.embeddings.to(device=device, dtype=dtype))
    move = [
        None if kv is None else (kv[0].to(device=device, dtype=dtype), kv[1].to(device=device, dtype=dtype))
        for kv in prompt.layers
    ]
    return KVPrompt(tuple(move))


def frozen(prompt: Prompt) -> Prompt:
    """A copy without gradient that shares no memory with the original."""
    if isinstance(prompt, EmbeddingPrompt):
        return EmbeddingPrompt(prompt.embeddings.detach().clone())
    return KVPrompt(
        tuple(None if kv is None else (kv[0].detach().clone(), kv[1].detach().clone()) for kv in prompt.layers)
    )


def size_of(prompt: Prompt) -> int:
    """Bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in prompt.tensors().values())


def prompt_digest(prompt: Prompt) -> str:
    """sha256 hex over names, shapes, dtypes and bytes of the tensors."""
    sha = hashlib.sha256()
    for name, tensor in sorted(prompt.tensors().items()):
        plain = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {tuple(plain.shape)} {plain.dtype}\n".encode())
        sha.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
