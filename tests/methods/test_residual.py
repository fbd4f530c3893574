"""Residual prompt tuning: P' = P + LayerNorm(MLP(P)), one network or one for each token."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from softprompt.prompts.forms import EmbeddingPrompt
from tests.support.learning import stir
from tests.support.tasks import learner
from tests.support.tiny import tiny_lm


@pytest.mark.parametrize(("name", "networks"), [("residual", 1), ("residual-separate", 6)])
def test_the_equation(name: str, networks: int) -> None:
    """Token by token, with plain layers that hold the same weights."""
    method = learner(tiny_lm("llama"), name)
    state = stir(method)
    assert len(state["down"]) == networks
    wanted = []
    for i, token in enumerate(state["embeddings"]):
        n = i if networks > 1 else 0
        down, up, norm = nn.Linear(32, 8), nn.Linear(8, 32), nn.LayerNorm(32)
        down.load_state_dict({"weight": state["down"][n].T, "bias": state["down_bias"][n, 0]})
        up.load_state_dict({"weight": state["up"][n].T, "bias": state["up_bias"][n, 0]})
        norm.load_state_dict({"weight": state["scale"][n, 0], "bias": state["shift"][n, 0]})
        wanted.append(token + nn.Sequential(down, nn.ReLU(), up, norm)(token))
    (prompt,) = method()
    assert isinstance(prompt, EmbeddingPrompt)
    assert_close(prompt.embeddings, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_separate_networks_differ_from_the_start() -> None:
    state = dict(learner(tiny_lm("llama"), "residual-separate").named_parameters())
    assert not torch.equal(state["down"][0], state["down"][1])
