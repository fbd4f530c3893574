"""The registered forms of soft prompts, and checks that hold for every form.

After training the method no longer matters: evaluation and serving see only a form. Three forms are built in;
another is a subclass of `SoftPrompt`, given to `register_form`.
"""

from __future__ import annotations

import hashlib

import torch

from softprompt.errors import GeometryError
from softprompt.models.geometry import Geometry
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.embedding_prompt import EmbeddingPrompt
from softprompt.prompts.kv_prompt import KVPrompt
from softprompt.prompts.state_prompt import StatePrompt

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_FORMS: dict[str, type[SoftPrompt]] = {}


def register_form(form: type[SoftPrompt]) -> type[SoftPrompt]:
    """Make a form known by its name, to cards and everything that loads them. Usable as a decorator.

    Raises ValueError if another form has that name.
    """
    if _FORMS.setdefault(form.form, form) is not form:
        raise ValueError(f"a form named {form.form!r} is registered already")
    return form


def unregister_form(name: str) -> None:
    """Forget a form."""
    del _FORMS[name]


def form_names() -> tuple[str, ...]:
    """The names of all registered forms."""
    return tuple(_FORMS)


def form_class(name: str) -> type[SoftPrompt]:
    """The class of the form with this name. Raises KeyError for an unknown one."""
    return _FORMS[name]


def check_fits(prompt: SoftPrompt, geometry: Geometry) -> None:
    """Raise GeometryError unless every tensor has the shape, dtype and finite values that the base model needs."""
    where = f"{prompt.form} prompt for {geometry.base}"
    tensors = prompt.tensors()
    stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shapes = prompt.expected_shapes(geometry, prompt.n_tokens, stored)
    if prompt.n_tokens < 1:
        raise GeometryError("a soft prompt needs at least one virtual token", where=where)
    if tensors.keys() != shapes.keys():
        odd = sorted(tensors.keys() ^ shapes.keys())
        raise GeometryError("tensors missing or too many", where=where, got=", ".join(odd[:6]))
    for name, tensor in tensors.items():
        if stored[name] != shapes[name]:
            raise GeometryError(
                f"tensor {name} has the wrong shape", where=where, expected=shapes[name], got=stored[name]
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


def size_of(prompt: SoftPrompt) -> int:
    """Bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in prompt.tensors().values())


def prompt_digest(prompt: SoftPrompt) -> str:
    """sha256 hex over names, shapes, dtypes and bytes of the tensors."""
    sha = hashlib.sha256()
    for name, tensor in sorted(prompt.tensors().items()):
        plain = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {tuple(plain.shape)} {plain.dtype}\n".encode())
        sha.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


register_form(EmbeddingPrompt)
register_form(KVPrompt)
register_form(StatePrompt)
