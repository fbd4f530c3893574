"""What rows look at in a prefix, against the model's own attention weights on the whole text."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.prefix import attention_scores as module
from softprompt.prefix.attention_scores import attention_mass
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from tests.support.cases import text_ids
from tests.support.tiny import FAMILIES, tiny_lm


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("together", [1, 10**9])
@torch.no_grad()
def test_it_is_the_models_own(family: str, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed over the tokens that ask and over the heads that share keys, one row at a time or all at once."""
    monkeypatch.setattr(module, "_WEIGHTS", together)
    lm, text = tiny_lm(family), text_ids(9, 1)
    rows, asking = [text_ids(5, 2), text_ids(3, 3)], [[False, True, True, False, True], [True, False, True]]
    before = str(lm.hf_model.config._attn_implementation)
    found = attention_mass(lm, prepare_prefixes(lm, [Prefix(lead=tuple(text))]), [Row(row) for row in rows], asking)
    assert lm.hf_model.config._attn_implementation == before
    lm.hf_model.set_attn_implementation("eager")
    try:
        for layer, own in enumerate(found):
            assert own is not None
            wanted = torch.zeros_like(own)
            for row, asks in zip(rows, asking, strict=True):
                out = lm.hf_model(input_ids=torch.tensor([text + row], device=lm.device), output_attentions=True)
                weights = out.attentions[layer][0][:, [len(text) + i for i, on in enumerate(asks) if on], : len(text)]
                wanted += weights.sum(1).view(len(own), -1, len(text)).sum(1)
            assert_close(own, wanted, rtol=1e-4, atol=1e-5)
    finally:
        lm.hf_model.set_attn_implementation(before)
