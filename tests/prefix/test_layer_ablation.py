"""Rows that do not see a soft prompt in some layers: begun at the first of these, against whole passes."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.layer_ablation import AblatedRows, Ablation
from softprompt.prefix.layer_start import LayerStart, recorded_layers, started_at_layer
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import hidden_states, packs_rows, prepare_prefixes
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.verify import verify
from tests.support.cases import random_prompt, text_ids
from tests.support.odd_models import odd_lm
from tests.support.plain_ablation import hide_virtual_tokens
from tests.support.tiny import FAMILIES, tiny_lm

ROWS = [text_ids(5, 1), text_ids(3, 2), text_ids(7, 3)]
COUNTED = [[False, True, False, True, True], [False, False, True], [True] * 7]
ABLATIONS = [
    Ablation([1]),
    Ablation([0]),
    Ablation([0, 1]),
    Ablation([1], [0]),
    Ablation([1], [1, 3]),
    Ablation([0], [2]),
]


def plainly(lm: FrozenLM, prefix: Prefix, ablation: Ablation) -> Tensor:
    """A whole pass without the virtual tokens in these layers."""
    begin = len(prefix.lead)
    assert prefix.prompt is not None
    slots = range(begin, begin + prefix.prompt.n_tokens)
    with torch.no_grad(), hide_virtual_tokens(lm, ablation.layers, slots, ablation.heads):
        prefix_kv = prepare_prefixes(lm, [prefix])
        states_TH = hidden_states(lm, prefix_kv, [Row(ids) for ids in ROWS])
    return states_TH[torch.tensor([on for row in COUNTED for on in row])]


def check(lm: FrozenLM, prefix: Prefix) -> AblatedRows:
    rows = AblatedRows(lm, prefix, ROWS, COUNTED)
    for ablation, states in zip(ABLATIONS, rows.states(ABLATIONS), strict=True):
        torch.testing.assert_close(states, plainly(lm, prefix, ablation), rtol=1e-3, atol=1e-4)
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_whole_passes(family: str) -> None:
    lm = tiny_lm(family)
    rows = check(lm, Prefix(random_prompt(lm, "embedding", 4, 1), (3, 9), (20, 21, 22)))
    assert rows.starts, "the lower layers are left out"
    check(lm, Prefix(random_prompt(lm, "kv", 4, 1), (), (20, 21)))
    check(lm, Prefix(random_prompt(lm, "kv", 4, 1)))


@pytest.mark.parametrize("family", ["gemma4", "gemma4_dense", "cohere", "gpt_oss"])
def test_other_kinds_begin_where_that_is_exact(family: str) -> None:
    lm = odd_lm(family)
    assert packs_rows(lm)
    check(lm, Prefix(random_prompt(lm, "embedding", 4, 1), (3, 9), (20, 21, 22)))


def test_attention_outside_the_interface_is_refused() -> None:
    """It would see the virtual tokens everywhere, and nothing would seem to be lost."""
    lm = odd_lm("gptj")
    verify(lm)
    if PrefixRuntime.of(lm).can_switch_attention:
        pytest.skip("inside it since Transformers 5.24")
    with pytest.raises(UnsupportedModelError, match="attention cannot be told"):
        AblatedRows(lm, Prefix(random_prompt(lm, "embedding", 4, 1)), ROWS, COUNTED)


def test_hiding_changes_the_states() -> None:
    """Or the comparisons above would hold for a prompt that nobody sees."""
    lm = tiny_lm()
    prefix = Prefix(random_prompt(lm, "embedding", 4, 1), (3, 9), (20, 21))
    found = AblatedRows(lm, prefix, ROWS, COUNTED).states(ABLATIONS)
    for i, states in enumerate(found):
        assert all(torch.dist(states, other) > 0.01 for other in found[:i])


def test_a_pass_that_cannot_begin_at_a_layer_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("qwen3")
    monkeypatch.setattr(lm.extension(LayerStart), "reason", "layers share their keys")
    rows = check(lm, Prefix(random_prompt(lm, "embedding", 4, 1), (3, 9), (20, 21)))
    assert not rows.starts


def test_other_threads_run_all_layers() -> None:
    lm, ids = tiny_lm(), torch.tensor([text_ids(6, 1)])
    wanted = lm.backbone.run(ids_BL=ids)
    found = list[Tensor]()
    with torch.no_grad(), recorded_layers(lm) as below:
        lm.backbone.run(ids_BL=ids.flip(1))
    with torch.no_grad(), started_at_layer(lm, 1, below[0]):
        here = lm.backbone.run(ids_BL=ids)
        thread = threading.Thread(target=lambda: found.append(lm.backbone.run(ids_BL=ids)))
        thread.start()
        thread.join()
    torch.testing.assert_close(found[0], wanted)
    assert torch.dist(here, wanted) > 0.01 and all("forward" not in vars(module) for module in lm.hf_model.modules())
    torch.testing.assert_close(lm.backbone.run(ids_BL=ids), wanted)
