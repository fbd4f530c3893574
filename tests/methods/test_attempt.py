"""Attention over source prompts, of either form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import ConfigError, GeometryError
from softprompt.methods.attempt import Attempt
from softprompt.methods.initializers import initial_embeddings, initial_keys_values
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt, check_fits
from tests.support.cases import random_prompt
from tests.support.learning import judged, learn, stir
from tests.support.tasks import answers, learner, source_prompts, start_of
from tests.support.tiny import tiny_lm

FORMS = ("embedding", "kv")


def attempt(form: str, sources: Sequence[SoftPrompt] | None = None, frozen_tokens: int = 0) -> Attempt:
    lm = tiny_lm("llama")
    chosen = tuple(random_prompt(lm, form, 6, seed) for seed in (1, 2, 3)) if sources is None else sources
    method = learner(lm, "attempt", chosen, frozen_tokens=frozen_tokens)
    assert isinstance(method, Attempt)
    return method


@pytest.mark.parametrize("form", FORMS)
def test_the_equation(form: str) -> None:
    method = attempt(form)
    first = method.attention().detach()
    state = stir(method, 1.0)
    sources = state["sources"]
    assert sources.shape[:2] == (3, 6)
    keys = torch.stack([torch.stack([max(column) for column in table.T]) for table in sources])
    inner = state["down.weight"] @ state["query"]
    out = state["up.weight"] @ (inner * torch.sigmoid(inner))
    out = (out - out.mean()) / (out.var(unbiased=False) + 1e-5).sqrt() * state["norm.weight"] + state["norm.bias"]
    scores = [float(key @ out) / (float(keys.square().mean()) ** 0.5 * math.e * len(out) ** 0.5) for key in keys]
    weights = torch.tensor([math.exp(s) for s in scores])
    weights /= weights.sum()
    assert (weights - first).abs().max() > 0.01
    wanted = state["begin"] + state["target"] + sum((weights[j] - first[j]) * sources[j] for j in range(3))
    (prompt,) = method()
    assert prompt.form == form
    assert_close(prompt.matrix(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_starts_exactly_at_the_initialiser(form: str) -> None:
    lm = tiny_lm("llama")
    wanted = (
        initial_embeddings(lm, start_of(lm)) if form == "embedding" else initial_keys_values(lm, start_of(lm)).matrix()
    )
    (prompt,) = attempt(form)()
    assert_close(prompt.matrix().detach(), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_sources_stay_and_attention_moves(form: str) -> None:
    lm, method = tiny_lm("llama"), attempt(form)
    before, first = method.sources.clone(), judged(lm, method, answers(8, 1000))
    learn(lm, method, answers(16, 0), steps=20)
    assert torch.equal(method.sources, before)
    assert (method.attention() - method.even).abs().max() > 1e-3
    assert judged(lm, method, answers(8, 1000)) < first
    check_fits(method.freeze()[0], lm.geometry)


def test_attention_does_not_depend_on_the_size_of_the_sources() -> None:
    small = tuple(EmbeddingPrompt(p.tensors()["embeddings"] * 0.01) for p in source_prompts(tiny_lm("llama")))
    one, two = attempt("embedding", sources=source_prompts(tiny_lm("llama"))), attempt("embedding", sources=small)
    assert_close(one.attention(), two.attention())


def test_frozen_tokens_of_a_kv_prompt_stay() -> None:
    method = attempt("kv", frozen_tokens=2)
    begin = method.begin.clone()
    stir(method)
    assert (method()[0].matrix() == begin).all(dim=1).tolist() == [True] * 2 + [False] * 4
    with pytest.raises(ConfigError, match="frozen tokens"):
        attempt("kv", frozen_tokens=6)


def test_sources_in_half_precision() -> None:
    lm = tiny_lm("llama")
    halves = tuple(p.to(dtype=torch.bfloat16) for p in source_prompts(lm))
    assert learner(lm, "attempt", sources=halves).freeze()[0].tensors()["embeddings"].dtype == torch.float32


def test_sources_that_do_not_fit_are_refused() -> None:
    lm = tiny_lm("llama")
    one, two = source_prompts(lm)[:2]
    with pytest.raises(ConfigError, match=r"(?s)needs source prompts.*two saved"):
        learner(lm, "attempt", sources=(one,))
    with pytest.raises(ConfigError, match=r"(?s)one form and length.*6 virtual tokens each.*embedding of 6, kv of 6"):
        learner(lm, "attempt", sources=(one, random_prompt(lm, "kv", 6, 1)))
    with pytest.raises(ConfigError, match="embedding of 5, embedding of 6"):
        learner(lm, "attempt", sources=(one, random_prompt(lm, "embedding", 5, 1)))
    with pytest.raises(ConfigError, match="5 virtual tokens each"):
        learner(lm, "attempt", n_tokens=5, sources=(one, two))
    with pytest.raises(GeometryError):
        learner(lm, "attempt", sources=(one, EmbeddingPrompt(torch.zeros(6, 31))))
