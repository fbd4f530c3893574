"""Cosines of virtual tokens, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.editing.similarity import Similarity, rank_by_similarity, similarity
from softprompt.errors import PromptError
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from tests.support.cases import random_prompt
from tests.support.tiny import tiny_lm

ONE = EmbeddingPrompt(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))


def test_embedding_prompts() -> None:
    """Means (0.5, 1) and (3, 0); cosines of pairs 1 and 0."""
    found = similarity(ONE, EmbeddingPrompt(torch.tensor([[3.0, 0.0]])))
    assert found.average == pytest.approx(0.5 / math.sqrt(1.25))
    assert found.per_token == pytest.approx(0.5)


def test_kv_prompts_are_compared_by_their_values() -> None:
    """All heads of a token are one vector; layers count the same; keys do not count."""

    def prompt(*layers: list[list[list[float]]]) -> KVPrompt:
        values = [torch.tensor(layer) for layer in layers]
        return KVPrompt((*((torch.randn(value.shape), value) for value in values), None))

    a = prompt([[[1.0, 0.0]], [[0.0, 0.0]]], [[[1.0, 0.0]], [[1.0, 0.0]]])
    b = prompt([[[1.0, 0.0]], [[0.0, 1.0]]], [[[-1.0, 0.0]], [[-1.0, 0.0]]])
    assert similarity(a, b).average == pytest.approx((math.sqrt(0.5) - 1) / 2)
    assert similarity(a, b).per_token == pytest.approx((math.sqrt(0.5) - 1) / 2)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["embedding", "kv"]), st.integers(1, 5), st.integers(1, 5), st.integers(0, 999))
def test_laws_of_likeness(form: str, n: int, m: int, seed: int) -> None:
    """Symmetric, in -1…1, blind to size; a prompt is most like itself."""
    lm = tiny_lm("gemma2")
    a, b = random_prompt(lm, form, n, seed), random_prompt(lm, form, m, seed + 1)
    found = similarity(a, b)
    assert found.average == pytest.approx(similarity(b, a).average, abs=1e-5)
    assert found.per_token == pytest.approx(similarity(b, a).per_token, abs=1e-5)
    assert -1.00001 <= min(found.average, found.per_token) <= max(found.average, found.per_token) <= 1.00001
    assert similarity(a, a).average == pytest.approx(1, abs=1e-5)
    if isinstance(a, EmbeddingPrompt):
        assert similarity(EmbeddingPrompt(-3 * a.embeddings), b).average == pytest.approx(-found.average, abs=1e-5)


def test_ranking() -> None:
    towards = {
        name: EmbeddingPrompt(torch.tensor([row])) for name, row in {"away": [-1.0, -1.0], "b": [1.0, 1.0]}.items()
    }
    found = rank_by_similarity(ONE, towards | {"same": ONE, "b2": towards["b"]})
    assert [name for name, _ in found] == ["same", "b", "b2", "away"]
    assert found[1] == ("b", similarity(ONE, towards["b"])) and isinstance(found[0][1], Similarity)
    assert rank_by_similarity(ONE, {}) == []


def test_what_cannot_be_compared() -> None:
    lm = tiny_lm("llama")
    for other in (random_prompt(lm, "kv", 2, 0), EmbeddingPrompt(torch.ones(2, 3))):
        with pytest.raises(PromptError, match="cannot be compared"):
            similarity(ONE, other)
    kv = random_prompt(lm, "kv", 2, 0)
    assert isinstance(kv, KVPrompt)
    with pytest.raises(PromptError, match="cannot be compared"):
        similarity(kv, KVPrompt(kv.layers[:1]))
