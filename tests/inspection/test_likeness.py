"""Likeness: a matrix beside its definition, and a map that keeps planted distances."""

from __future__ import annotations

import math

import pytest
import torch

from softprompt.editing.similarity import similarity
from softprompt.inspection.likeness import RANDOM, START, likeness, scaling_map
from softprompt.prompts.forms import EmbeddingPrompt
from tests.support.cases import random_prompt
from tests.support.tiny import tiny_lm


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_the_matrix_is_the_similarities_and_a_twin_comes_first(form: str) -> None:
    prompt, other = (random_prompt(tiny_lm(), form, 4, seed) for seed in (1, 2))
    found = likeness(prompt, [("other", other), ("twin", prompt)], "own", prompt)
    assert found is not None and found.names == ("own", "twin", "other", RANDOM, START) and found.left_out == 0
    assert found.average[0][1] == pytest.approx(1) and found.map[0] == pytest.approx(found.map[1], abs=1e-4)
    direct = similarity(prompt, other)
    assert (found.average[0][2], found.per_token[2][0]) == pytest.approx((direct.average, direct.per_token))


def test_the_map_keeps_planted_distances() -> None:
    """Unit vectors in a plane: two axes hold everything, and distances are √(2 − 2 cos)."""
    angles = [0.0, 0.4, 1.3, 2.9]
    places, shown = scaling_map([[math.cos(a - b) for b in angles] for a in angles])
    assert shown == pytest.approx(1) and min(places[0]) >= 0
    for a, one in zip(angles, places, strict=True):
        for b, other in zip(angles, places, strict=True):
            assert math.dist(one, other) == pytest.approx(math.sqrt(max(0.0, 2 - 2 * math.cos(a - b))), abs=1e-6)


def test_the_most_similar_are_kept_and_the_rest_is_counted() -> None:
    one = EmbeddingPrompt(torch.tensor([[1.0, 0.0]]))
    others = [(str(i), EmbeddingPrompt(torch.tensor([[math.cos(i / 40), math.sin(i / 40)]]))) for i in range(40)]
    found = likeness(one, [*others, ("wide", EmbeddingPrompt(torch.ones(1, 3)))], "own")
    assert found is not None and found.names == ("own", *(str(i) for i in range(24)), RANDOM) and found.left_out == 17
    assert likeness(one, []) is None
