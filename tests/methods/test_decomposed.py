"""Decomposed prompt tuning: P' = A B."""

from __future__ import annotations

import pytest
import torch

from softprompt.errors import ConfigError
from softprompt.methods.decomposed import DecomposedPromptTuning
from softprompt.methods.initializers import initial_embeddings
from softprompt.prompts.forms import EmbeddingPrompt
from tests.support.learning import learn
from tests.support.tasks import answers, learner, start_of
from tests.support.tiny import tiny_lm


@pytest.mark.parametrize("rank", [1, 3, 6, 40])
def test_starts_at_the_nearest_matrix_of_its_rank(rank: int) -> None:
    """What is lost is the rest of the singular values (Eckart and Young 1936); more rank than tokens adds nothing."""
    lm = tiny_lm("llama")
    method, begin = learner(lm, "decomposed", rank=rank), initial_embeddings(lm, start_of(lm))
    (prompt,) = method()
    assert isinstance(prompt, EmbeddingPrompt)
    assert torch.linalg.matrix_rank(prompt.embeddings.detach()) == min(rank, 6)
    lost = torch.linalg.svdvals(begin)[rank:].square().sum().sqrt()
    assert (prompt.embeddings - begin).norm().item() == pytest.approx(lost.item(), abs=1e-4)
    assert sum(p.numel() for p in method.parameters()) == min(rank, 6) * (6 + 32)


def test_directions_that_the_start_lacks_can_grow() -> None:
    """A text of two tokens, repeated, has rank two."""
    lm = tiny_lm("llama")
    method = learner(lm, "decomposed", text=(70, 71), rank=4)
    assert torch.linalg.matrix_rank(initial_embeddings(lm, start_of(lm, text=(70, 71)))) == 2
    learn(lm, method, answers(16, 0), steps=3)
    (prompt,) = method()
    assert isinstance(prompt, EmbeddingPrompt)
    assert torch.linalg.matrix_rank(prompt.embeddings.detach()) == 4


def test_rank_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank"):
        DecomposedPromptTuning(tiny_lm("llama"), start_of(tiny_lm("llama")), rank=0)
