"""One prefix that is there once for all rows. That what comes out is right is in test_session; here is when it is used,
and that nothing else notices."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix import cascade
from softprompt.prefix.attention_scores import attention_mass
from softprompt.prefix.attention_switch import IMPLEMENTATION
from softprompt.prefix.cascade import shared_layers
from softprompt.prefix.decoding import DecodingSession
from softprompt.prefix.kv import Prefix, require_causal
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from tests.support.cases import check_close, mixed_prefixes, text_ids
from tests.support.tiny import FAMILIES, tiny_lm

STEPS, ROWS = 3, [[5, 6, 7], [8], [9, 10]]


def decoded(lm: FrozenLM, prefix: Prefix) -> Tensor:
    """Hidden states [STEPS + 1, B, H] of the rows as they grow."""
    own = DecodingSession(lm, prepare_prefixes(lm, [prefix]), ROWS, [0] * len(ROWS), room=STEPS)
    return torch.stack(
        [own.hidden, *(own.step(torch.tensor(text_ids(len(ROWS), i), device=own.hidden.device)) for i in range(STEPS))]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_which_models_take_it(family: str) -> None:
    """All whose attention is SDPA: none of their layers goes without keys of its own."""
    lm = tiny_lm(family)
    own = require_causal(prepare_prefixes(lm, [mixed_prefixes(lm)[1]]))
    assert (shared_layers(lm, own) is None) == (lm.hf_model.config._attn_implementation == "eager")


def test_rows_behind_several_prefixes_have_copies() -> None:
    lm = tiny_lm("llama")
    assert shared_layers(lm, require_causal(prepare_prefixes(lm, mixed_prefixes(lm)))) is None
    assert shared_layers(lm, require_causal(prepare_prefixes(lm, [Prefix()]))) is None


def test_the_prefix_is_not_copied() -> None:
    """Row by row there are only the rows' own tokens."""
    lm = tiny_lm("llama")
    own = DecodingSession(lm, prepare_prefixes(lm, [Prefix(lead=tuple(text_ids(40, 3)))]), ROWS, [0] * 3, room=STEPS)
    own.step(torch.tensor([5, 6, 7], device=own.hidden.device))
    assert {tuple(keys.shape[:3]) for keys, _ in own._cache.buffers.values()} == {(3, 2, 3 + STEPS)}


@pytest.mark.parametrize("numbers", [1, 100])
def test_many_rows_are_taken_in_parts(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    prefix = mixed_prefixes(lm)[1]
    whole = decoded(lm, prefix)
    monkeypatch.setattr("softprompt.prefix.cascade.CASCADE_SCORES", numbers)
    check_close(decoded(lm, prefix), whole)


def test_the_models_attention_is_set_back() -> None:
    """Also when a step fails."""
    lm = tiny_lm("llama")
    layers = shared_layers(lm, require_causal(prepare_prefixes(lm, [mixed_prefixes(lm)[1]])))

    def fail() -> None:
        with cascade.cascade(lm, layers):
            assert lm.hf_model.config._attn_implementation == IMPLEMENTATION
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert lm.hf_model.config._attn_implementation == "sdpa"


def test_other_threads_see_nothing_of_it() -> None:
    """A call of the same model in another thread, in the middle of a step, is the model's own."""
    lm = tiny_lm("llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    found: list[Tensor] = []

    @torch.no_grad()
    def call() -> None:
        found.append(lm.hf_model(ids).logits)

    call()
    with cascade.cascade(lm, shared_layers(lm, require_causal(prepare_prefixes(lm, [mixed_prefixes(lm)[1]])))):
        other = threading.Thread(target=call)
        other.start()
        other.join()
    check_close(found[1], found[0])


@torch.no_grad()
def test_what_rows_look_at_waits_for_a_step() -> None:
    """Both set the model's attention, which is one for all threads."""
    lm = tiny_lm("llama")
    own, rows = prepare_prefixes(lm, [mixed_prefixes(lm)[1]]), [Row(row) for row in ROWS]
    found: list[Tensor | None] = []
    asking = [[True] * len(row) for row in ROWS]
    with cascade.cascade(lm, shared_layers(lm, require_causal(own))):
        other = threading.Thread(target=lambda: found.extend(attention_mass(lm, own, rows, asking)))
        other.start()
        other.join(timeout=0.2)
        assert not found and lm.hf_model.config._attn_implementation == IMPLEMENTATION
    other.join()
    for one, wanted in zip(found, attention_mass(lm, own, rows, asking), strict=True):
        assert one is not None and wanted is not None
        check_close(one, wanted)
    assert lm.hf_model.config._attn_implementation == "sdpa"
