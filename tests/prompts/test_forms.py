"""The two forms: what fits a base model, what identifies a prompt, copies and casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softprompt.errors import GeometryError
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import DTYPES, EmbeddingPrompt, KVPrompt, check_fits, form_class, prompt_digest
from tests.support.artifacts import FORMS, PLAIN, artifacts, contents, geometry, prompt


def changed(form: str, name: str, change: Callable[[Tensor], Tensor]) -> SoftPrompt:
    """A fitting prompt of ones with one tensor changed."""
    ones = {key: torch.ones(shape) for key, shape in form_class(form).expected_shapes(PLAIN, 3).items()}
    return form_class(form).from_tensors(ones | {name: change(ones[name])}, PLAIN)


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


@settings(deadline=None, max_examples=80)
@given(artifacts())
def test_what_is_made_to_measure_fits_and_comes_back_from_its_tensors(made: tuple[SoftPrompt, Card]) -> None:
    one, base = made[0], made[1].geometry
    check_fits(one, base)
    assert one.expected_shapes(base, one.n_tokens) == {k: tuple(t.shape) for k, t in one.tensors().items()}
    again = one.replace_tensors(one.tensors())
    assert type(again) is type(one)
    assert again.n_tokens == one.n_tokens
    assert contents(again) == contents(one)


FIRST = {"embedding": "embeddings", "kv": "layers.2.v"}
WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "one too narrow": (lambda t: t[..., 1:], "wrong shape"),
    "turned": (lambda t: t.transpose(-1, -2), "wrong shape"),
    "one axis more": (lambda t: t[None], "wrong shape"),
    "whole numbers": (lambda t: t.int(), "unusable dtype"),
    "float64": (lambda t: t.double(), "unusable dtype"),
    "NaN": (with_value(float("nan")), "NaN or infinite"),
    "infinite": (with_value(float("inf")), "NaN or infinite"),
    "minus infinite": (with_value(float("-inf")), "NaN or infinite"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_tensor_is_refused_by_name(form: str, wrong: str) -> None:
    change, message = WRONG[wrong]
    check_fits(changed(form, FIRST[form], lambda t: t), PLAIN)
    with pytest.raises(GeometryError, match=message) as caught:
        check_fits(changed(form, FIRST[form], change), PLAIN)
    assert f"tensor {FIRST[form]} " in str(caught.value)
    assert f"{form} prompt for {PLAIN.base}" in str(caught.value)


def test_values_of_another_length_than_the_keys_are_refused() -> None:
    with pytest.raises(GeometryError, match=r"layers\.0\.v has the wrong shape"):
        check_fits(changed("kv", "layers.0.v", lambda t: t[:, 1:]), PLAIN)


@pytest.mark.parametrize("form", FORMS)
def test_no_virtual_tokens_are_no_prompt(form: str) -> None:
    with pytest.raises(GeometryError, match="at least one"):
        check_fits(prompt(form, PLAIN, 0), PLAIN)


def test_a_kv_prompt_of_no_layers_is_no_prompt() -> None:
    with pytest.raises(GeometryError, match="at least one"):
        check_fits(KVPrompt((None, None, None)), PLAIN)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_layers_missing_or_too_many_are_named(at: int) -> None:
    made = prompt("kv")
    assert isinstance(made, KVPrompt)
    layers = list(made.layers)
    layers[at] = None if layers[at] else layers[0]
    with pytest.raises(GeometryError, match=rf"missing or too many\n.*\n?.*layers\.{at}\.k, layers\.{at}\.v"):
        check_fits(KVPrompt(tuple(layers)), PLAIN)


@pytest.mark.parametrize("form", FORMS)
def test_the_smallest_window_bounds_the_length(form: str) -> None:
    base = geometry(windows=(9, None, 5))
    check_fits(prompt(form, base, 5), base)
    with pytest.raises(GeometryError, match="sliding window") as caught:
        check_fits(prompt(form, base, 6), base)
    assert (caught.value.expected, caught.value.got) == ("<= 5", 6)
    check_fits(prompt(form, PLAIN, 40), geometry(windows=(None, None, None)))


@settings(deadline=None, max_examples=60)
@given(artifacts(), st.data())
def test_the_digest_sees_every_bit(made: tuple[SoftPrompt, Card], data: st.DataObject) -> None:
    before = prompt_digest(made[0])
    tensors = made[0].freeze().tensors()
    assert prompt_digest(made[0].replace_tensors(tensors)) == before
    name = data.draw(st.sampled_from(sorted(tensors)))
    raw = tensors[name].view(torch.uint8).view(-1)
    raw[data.draw(st.integers(0, raw.numel() - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert prompt_digest(made[0].replace_tensors(tensors)) != before


def test_the_digest_sees_shape_dtype_and_place() -> None:
    """Equal bytes are not enough: each of these pairs holds the same."""
    flat = torch.arange(6.0)
    assert prompt_digest(EmbeddingPrompt(flat.view(2, 3))) != prompt_digest(EmbeddingPrompt(flat.view(3, 2)))
    half = torch.ones(2, 3, dtype=torch.float16)
    assert prompt_digest(EmbeddingPrompt(half)) != prompt_digest(EmbeddingPrompt(half.view(torch.bfloat16)))
    one, two = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    assert prompt_digest(KVPrompt(((one, two),))) != prompt_digest(KVPrompt(((two, one),)))
    assert prompt_digest(KVPrompt(((one, two), None))) != prompt_digest(KVPrompt((None, (one, two))))


def test_the_digest_does_not_see_memory_layout_or_gradients() -> None:
    plain = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    turned = plain.t().contiguous().t()
    assert not turned.is_contiguous()
    same = {
        prompt_digest(EmbeddingPrompt(t))
        for t in (plain, turned, plain.clone().requires_grad_(), plain.repeat(2, 1)[:4])
    }
    assert len(same) == 1


def needing_grad(form: str) -> SoftPrompt:
    shapes = form_class(form).expected_shapes(PLAIN, 3).items()
    return form_class(form).from_tensors(
        {name: torch.full(shape, 1.5).requires_grad_() for name, shape in shapes}, PLAIN
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_frozen_prompt_is_a_copy_without_gradient(form: str) -> None:
    live = needing_grad(form)
    copy = live.freeze()
    assert type(copy) is type(live)
    assert contents(copy) == contents(live)
    for name, tensor in copy.tensors().items():
        assert not tensor.requires_grad
        tensor.fill_(9.0)
        assert torch.equal(live.tensors()[name], torch.full_like(tensor, 1.5)), "they share memory"
    assert all(tensor.requires_grad for tensor in live.tensors().values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_a_cast_prompt_passes_gradients_on(form: str, dtype: torch.dtype) -> None:
    live = needing_grad(form)
    cast = live.to(device="cpu", dtype=dtype)
    assert type(cast) is type(live)
    assert {t.dtype for t in cast.tensors().values()} == {dtype}
    torch.stack([(2 * t).sum() for t in cast.tensors().values()]).sum().backward()
    for tensor in live.tensors().values():
        assert tensor.grad is not None
        assert torch.equal(tensor.grad, torch.full_like(tensor, 2.0))


@pytest.mark.parametrize("form", FORMS)
def test_casting_moves_every_tensor_to_the_device(form: str) -> None:
    moved = prompt(form).to(device="meta")
    assert {t.device.type for t in moved.tensors().values()} == {"meta"}
    assert moved.tensors().keys() == prompt(form).tensors().keys()


@settings(deadline=None, max_examples=40)
@given(artifacts())
def test_casting_to_nothing_changes_nothing(made: tuple[SoftPrompt, Card]) -> None:
    assert contents(made[0].to()) == contents(made[0])


def test_prompts_cannot_be_changed_in_place() -> None:
    made: Any = prompt("embedding")
    with pytest.raises(AttributeError):
        made.embeddings = torch.zeros(1, 1)
