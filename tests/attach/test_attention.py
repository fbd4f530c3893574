"""What rows look at in a prefix, against the model's own attention weights on the whole text."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.attach import Prefix, attention_mass, attention_outputs, bank
from softprompt.attach import attention as module
from softprompt.packing import Row
from tests.laws.cases import text_ids
from tests.tiny import FAMILIES, tiny_lm


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("together", [1, 10**9])
@torch.no_grad()
def test_it_is_the_models_own(family: str, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed over the tokens that ask and over the heads that share keys, one row at a time or all at once."""
    monkeypatch.setattr(module, "NUMBERS", together)
    lm, text = tiny_lm(family), text_ids(9, 1)
    rows, asking = [text_ids(5, 2), text_ids(3, 3)], [[False, True, True, False, True], [True, False, True]]
    before = str(lm.model.config._attn_implementation)
    found = attention_mass(lm, bank(lm, [Prefix(lead=tuple(text))]), [Row(row) for row in rows], asking)
    assert lm.model.config._attn_implementation == before
    lm.model.set_attn_implementation("eager")
    try:
        for layer, own in enumerate(found):
            assert own is not None
            wanted = torch.zeros_like(own)
            for row, asks in zip(rows, asking, strict=True):
                out = lm.model(input_ids=torch.tensor([text + row]), output_attentions=True)
                weights = out.attentions[layer][0][:, [len(text) + i for i, on in enumerate(asks) if on], : len(text)]
                wanted += weights.sum(1).view(len(own), -1, len(text)).sum(1)
            assert_close(own, wanted, rtol=1e-4, atol=1e-5)
    finally:
        lm.model.set_attn_implementation(before)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_rows_get_is_what_the_model_hands_on(family: str) -> None:
    """The outputs are what the projection behind attention is given, the weights those of the prefix's slots."""
    lm, text, rows = tiny_lm(family), text_ids(9, 1), [text_ids(5, 2), text_ids(3, 3)]
    found = attention_outputs(lm, bank(lm, [Prefix(lead=tuple(text))]), [Row(row) for row in rows])
    handed: list[torch.Tensor] = []
    names = ("attn.o_proj", "attn.c_proj", "attn.out_proj", "attention.dense")
    hooks = [
        part.register_forward_pre_hook(lambda _, args: handed.append(args[0]))
        for name, part in lm.model.named_modules()
        if name.endswith(names)
    ]
    wanted: list[list[torch.Tensor]] = [[] for _ in found]
    for row in rows:
        handed.clear()
        lm.model(input_ids=torch.tensor([text + row]))
        for layer, own in zip(wanted, handed, strict=True):
            layer.append(own[0, len(text) :])
    for hook in hooks:
        hook.remove()
    for layer, own in zip(wanted, found, strict=True):
        assert own is not None and own[0].shape == (8, own[1].shape[1], 9)
        assert_close(own[1].flatten(1), torch.cat(layer), rtol=1e-4, atol=1e-5)
