"""Law 4: training leaves the base model's weights bit-identical."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt.methods.registry import method_specs
from tests.support.tasks import learner, run
from tests.support.tiny import tiny_lm


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", method_specs())
def test_training_changes_the_prompt_only(method: str, checkpointing: bool, tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    before, mine = lm.digest(), learner(lm, method)
    start = [p.detach().clone() for p in mine.parameters()]
    run(lm, mine, tmp_path, steps=3, weight_decay=0.1, gradient_checkpointing=checkpointing)
    assert lm.digest() == before
    assert all(not p.requires_grad and p.grad is None for p in lm.hf_model.parameters())
    assert not lm.hf_model.training
    assert not any("forward" in vars(layer) for layer in lm.hf_model.modules()), "layers are as they were"
    assert any(not torch.equal(p, old) for p, old in zip(mine.parameters(), start, strict=True))


def test_the_digest_sees_one_bit() -> None:
    lm = tiny_lm("gpt2")
    before = lm.digest()
    weight = lm.embedding.weight
    old = weight[17, 3].item()
    with torch.no_grad():
        weight[17, 3] = torch.nextafter(weight[17, 3], weight.new_tensor(9.0))
        changed = lm.digest()
        weight[17, 3] = old
    assert changed != before
    assert lm.digest() == before
