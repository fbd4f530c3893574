"""Law 8: whatever made it, a frozen prompt fits the base model and carries no gradient."""

from __future__ import annotations

import pytest
import torch

from softprompt.methods import METHODS, Method, Start, build
from softprompt.methods.inits import INITS
from softprompt.prompt import check_fits, digest
from tests.laws.cases import text_ids
from tests.tiny import FAMILIES, tiny_lm

LABELS = (tuple(text_ids(1, 1)), tuple(text_ids(3, 2)))


def made(family: str, name: str, init: str, n_tokens: int) -> Method:
    start = Start(n_tokens, init, tuple(text_ids(4, 3)), LABELS, lead=(3,), frozen_tokens=int(n_tokens > 1), hidden=8)
    return build(name, tiny_lm(family), start)


@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_from_every_start(name: str, init: str, n_tokens: int) -> None:
    geometry, method = tiny_lm("llama").geometry, made("llama", name, init, n_tokens)
    prompt = method.freeze()[0]
    check_fits(prompt, geometry)
    assert prompt.n_tokens == n_tokens
    tensors = prompt.tensors().values()
    assert all(t.dtype == torch.float32 and not t.requires_grad and t.grad_fn is None for t in tensors)
    before = digest(prompt)
    with torch.no_grad():
        for tensor in [*method.parameters(), *method.buffers()]:
            tensor.fill_(7.0)
    assert digest(prompt) == before, "the frozen prompt shares memory with the method"
    (live,) = method()
    assert any(t.requires_grad for t in live.tensors().values())
    assert not any(t.requires_grad for t in method.freeze()[0].tensors().values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_every_family(name: str, family: str) -> None:
    prompt = made(family, name, "text", 5).freeze()[0]
    check_fits(prompt, tiny_lm(family).geometry)
    assert prompt.n_tokens == 5
    assert not any(t.requires_grad for t in prompt.tensors().values())


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", METHODS)
def test_the_base_model_shares_no_memory_with_it(name: str, init: str) -> None:
    lm = tiny_lm("llama")
    prompt, before = made("llama", name, init, 4).freeze()[0], lm.digest()
    for tensor in prompt.tensors().values():
        tensor.fill_(3.0)
    assert lm.digest() == before


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", METHODS)
def test_a_seed_gives_the_same_start(name: str, init: str) -> None:
    assert digest(made("llama", name, init, 6).freeze()[0]) == digest(made("llama", name, init, 6).freeze()[0])
