"""The comparison with another engine: our side of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from softprompt.export.check import N_LISTED, N_TOKENS, check_rows, our_answers
from softprompt.models.frozen_lm import FrozenLM
from tests.export.source import source_of
from tests.support.tiny import tiny_lm


@pytest.fixture
def undecided_lm() -> Iterator[FrozenLM]:
    """A model whose logits are all equal; other tests get it back as it was."""
    lm = tiny_lm("llama", bos=True)
    head = lm.hf_model.get_output_embeddings()
    assert head is not None
    weight, before = head.weight, head.weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        yield lm
        weight.copy_(before)


def test_of_equal_logits_the_token_that_was_taken_is_the_answer(undecided_lm: FrozenLM) -> None:
    """bfloat16 has such logits often; the answer's next logits follow that token and no other."""
    source = source_of(undecided_lm)
    answers = our_answers(source, check_rows(source, ("a", "longer text")))
    assert [answer.ids for answer in answers] == [(0,) * N_TOKENS] * 4, "the first of the equal ones"
    assert {len(step) for answer in answers for step in answer.logprobs} == {N_LISTED}
