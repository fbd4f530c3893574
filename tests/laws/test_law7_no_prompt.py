"""Law 7: no soft prompt means exactly the base model."""

from __future__ import annotations

import pytest
import torch

from softprompt.prefix.decoding import DecodingSession
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.verify import verify
from tests.support.cases import check_close, mixed_prefixes, text_ids
from tests.support.tiny import FAMILIES, tiny_lm

ROWS = [text_ids(n, 20 + n) for n in (13, 1, 25, 6)]


@pytest.mark.parametrize("family", FAMILIES)
def test_verify_passes(family: str) -> None:
    lm = tiny_lm(family)
    runtime = PrefixRuntime.of(lm)
    runtime.exact = False
    runtime.mask_style = None
    verify(lm)
    assert runtime.exact and runtime.mask_style == ("per layer type" if lm.layer_types else "single")


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_prefix(family: str) -> None:
    lm = tiny_lm(family)
    with torch.no_grad():
        wanted = [
            lm.hf_model(input_ids=torch.tensor([row], device=lm.device), use_cache=False).logits[0] for row in ROWS
        ]
        for prefixes in ([Prefix()], [*mixed_prefixes(lm), Prefix()]):
            number = len(prefixes) - 1
            own = prepare_prefixes(lm, prefixes)
            assert own.lengths[number] == 0
            for capacity in (1, 50):
                states = packed_hidden_states(lm, own, [Row(row, number) for row in ROWS], capacity=capacity)
                check_close(lm.logits(states), torch.cat(wanted))
            session = DecodingSession(lm, own, ROWS, [number] * len(ROWS), room=1)
            check_close(lm.logits(session.hidden), torch.stack([w[-1] for w in wanted]))
