"""Small geometries, prompts and cards of them, and hypothesis strategies that draw them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from softprompt.models.geometry import Geometry, LayerShape
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card, Layout
from softprompt.prompts.forms import DTYPES, form_class

BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
FORMS = ("embedding", "kv")
SITES = ("encoder", "decoder", "cross")
PLAIN = Geometry(
    base="tiny",
    architecture="llama",
    hidden=6,
    vocab=300,
    layers=(LayerShape(2, 4, 3), None, LayerShape(1, 2, 2)),
    windows=(None, 16, None),
    max_positions=128,
    sample=(0.5, -0.25, 0.0, 1.5),
    matrices=(0.125, -1.0),
)


def geometry(**changes: Any) -> Geometry:
    """`PLAIN`, whose layers all differ and of which one has no keys and values, with changes."""
    return dataclasses.replace(PLAIN, **changes)


def any_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Every finite number of the dtype is as likely as any other: tiny, huge, negative zero."""
    draw, bits = torch.Generator().manual_seed(seed), BITS[dtype]
    span = torch.iinfo(bits)
    values = torch.randint(span.min, span.max + 1, shape, generator=draw).to(bits).view(dtype)
    return torch.where(torch.isfinite(values), values, torch.tensor(-0.0, dtype=dtype))


def prompt(
    form: str, base: Geometry = PLAIN, n_tokens: int = 3, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> SoftPrompt:
    """A prompt of any bits that fits `base`."""
    shapes = form_class(form).expected_shapes(base, n_tokens).items()
    return form_class(form).from_tensors(
        {name: any_bits(shape, dtype, seed + i) for i, (name, shape) in enumerate(shapes)}, base
    )


def card(base: Geometry = PLAIN, **changes: Any) -> Card:
    """A card whose form, length and sha256 are still to be filled in by `store.save`."""
    facts = {"name": "tone", "form": "kv", "n_tokens": 1, "sha256": "0" * 64, "base": base.to_dict()}
    return Card.model_validate(facts | changes)


def contents(made: SoftPrompt) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Everything that two equal prompts have in common, down to the bits."""
    return {
        name: (t.dtype, tuple(t.shape), t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in made.tensors().items()
    }


_size = st.integers(1, 5)
_layer = st.none() | st.builds(LayerShape, kv_heads=_size, key_dim=_size, value_dim=_size)
_samples = st.lists(st.floats(-4, 4, width=32), max_size=6).filter(
    lambda weights: not 0 < max(map(abs, weights), default=0) < 1e-3  # float16 would round them all to nothing
)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any base model with at least one layer that keeps keys and values, and windows of 8 tokens or more."""
    layers = draw(st.lists(_layer, min_size=1, max_size=4).filter(any))
    windows = draw(st.lists(st.none() | st.integers(8, 64), min_size=len(layers), max_size=len(layers)))
    sites = draw(st.just([]) | st.lists(st.sampled_from(SITES), min_size=len(layers), max_size=len(layers)))
    return Geometry(
        base=draw(st.text(max_size=8)),
        architecture=draw(st.sampled_from(["llama", "gpt2"])),
        hidden=draw(_size),
        vocab=draw(st.integers(1, 500)),
        layers=tuple(layers),
        windows=tuple(windows),
        max_positions=draw(st.integers(64, 2**31)),
        sample=tuple(draw(_samples)),
        matrices=tuple(draw(_samples)),
        sites=tuple(sites),
    )


@st.composite
def artifacts(draw: st.DrawFn) -> tuple[SoftPrompt, Card]:
    """A prompt of either form and any dtype, and the card it is saved with."""
    base = draw(geometries())
    form, dtype = draw(st.sampled_from(FORMS)), draw(st.sampled_from(DTYPES))
    made = prompt(form, base, draw(st.integers(1, 7)), dtype=dtype, seed=draw(st.integers(0, 2**31)))
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    layout = Layout(bos=draw(st.booleans()), lead=draw(text), follow=draw(text), follow_bos=draw(st.booleans()))
    plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    facts = st.dictionaries(text, plain | text | st.lists(plain, max_size=3), max_size=3)
    return made, card(
        base,
        name=draw(text),
        layout=layout,
        labels=draw(st.lists(text, max_size=3)),
        metrics=draw(facts),
        recipe=draw(facts),
        license=draw(st.none() | text),
    )
