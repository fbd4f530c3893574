"""A prompt as one matrix, and back."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import KVPrompt, prompt_digest
from tests.support.artifacts import PLAIN, prompt
from tests.support.cases import pairs


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_there_and_back(form: str) -> None:
    """With layers of several shapes, and one that has none; `like` gives its shapes alone."""
    one: SoftPrompt = prompt(form)
    table = one.matrix()
    width = PLAIN.hidden if form == "embedding" else 2 * (4 + 3) + 1 * (2 + 2)
    assert table.shape == (one.n_tokens, width)
    assert prompt_digest(one.to(device="meta").from_matrix(table)) == prompt_digest(one)


def test_a_row_is_a_token_and_heads_stand_one_after_the_other() -> None:
    one = prompt("kv")
    assert isinstance(one, KVPrompt)
    (k0, v0), (k2, v2) = pairs(one.layers)
    wanted = torch.cat([k0[0, 1], k0[1, 1], v0[0, 1], v0[1, 1], k2[0, 1], v2[0, 1]])
    assert_close(one.matrix()[1], wanted, rtol=0, atol=0)
