"""Law 8: whatever made it, a frozen prompt fits the base model and carries no gradient."""

from __future__ import annotations

import pytest
import torch

from softprompt.methods.base import Method
from softprompt.methods.initializers import INITS
from softprompt.methods.registry import method_spec, method_specs
from softprompt.prompts.forms import check_fits, prompt_digest
from tests.support.cases import random_prompt, text_ids
from tests.support.tasks import learner
from tests.support.tiny import FAMILIES, tiny_lm

LABELS = (tuple(text_ids(1, 1)), tuple(text_ids(3, 2)))


def made(family: str, name: str, init: str, n_tokens: int) -> Method:
    lm, kv = tiny_lm(family), method_spec(name).trains_kv
    lead = (3,) if n_tokens > 1 else ()
    return learner(
        lm,
        name,
        n_tokens=n_tokens,
        init=init,
        text=tuple(text_ids(n_tokens - len(lead) * kv if init == "demonstrations" else 4, 3)),
        labels=LABELS,
        prompt=random_prompt(lm, "kv" if kv else "embedding", n_tokens, 4),
        lead=lead,
        frozen_tokens=int(n_tokens > 1),
        n_tasks=2,
    )


def whole(method: Method) -> list[str]:
    """The digests of all that it freezes into."""
    return [prompt_digest(prompt) for prompt in method.freeze()]


@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", method_specs())
def test_every_method_from_every_start(name: str, init: str, n_tokens: int) -> None:
    geometry, method = tiny_lm("llama").geometry, made("llama", name, init, n_tokens)
    prompts = method.freeze()
    for prompt in prompts:
        check_fits(prompt, geometry)
        assert prompt.n_tokens == n_tokens
        tensors = prompt.tensors().values()
        assert all(t.dtype == torch.float32 and not t.requires_grad and t.grad_fn is None for t in tensors)
    before = [prompt_digest(prompt) for prompt in prompts]
    with torch.no_grad():
        for tensor in [*method.parameters(), *method.buffers()]:
            tensor.fill_(7.0)
    assert [prompt_digest(prompt) for prompt in prompts] == before, "the frozen prompt shares memory with the method"
    for live, kept in zip(method(), method.freeze(), strict=True):
        assert any(t.requires_grad for t in live.tensors().values())
        assert not any(t.requires_grad for t in kept.tensors().values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", method_specs())
def test_every_family(name: str, family: str) -> None:
    for prompt in made(family, name, "text", 5).freeze():
        check_fits(prompt, tiny_lm(family).geometry)
        assert prompt.n_tokens == 5
        assert not any(t.requires_grad for t in prompt.tensors().values())


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", method_specs())
def test_the_base_model_shares_no_memory_with_it(name: str, init: str) -> None:
    lm = tiny_lm("llama")
    prompts, before = made("llama", name, init, 4).freeze(), lm.digest()
    for prompt in prompts:
        for tensor in prompt.tensors().values():
            tensor.fill_(3.0)
    assert lm.digest() == before


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", method_specs())
def test_a_seed_gives_the_same_start(name: str, init: str) -> None:
    assert whole(made("llama", name, init, 6)) == whole(made("llama", name, init, 6))
