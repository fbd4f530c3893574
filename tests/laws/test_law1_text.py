"""Law 1: an embedding prompt made of embed(text), and a KV prompt harvested from a text, act exactly like that text."""

from __future__ import annotations

import pytest
import torch

from softprompt.data.template import bos_ids
from softprompt.methods.initializers import harvest
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.forms import EmbeddingPrompt
from tests.support.cases import check_close, text_ids
from tests.support.tiny import FAMILIES, tiny_lm

TEXT, ROWS = text_ids(9, 1), (text_ids(14, 2), text_ids(1, 3), text_ids(5, 4))  # past the sliding window of 11
AROUND = [((), ()), ((31, 32), ()), ((), (33, 34, 35)), ((31, 32), (33, 34, 35))]


def whole_text(lm: FrozenLM, before: list[int], row: list[int]) -> torch.Tensor:
    """What the model itself, fed ids and nothing else, says of the row's tokens."""
    return lm.hf_model(input_ids=torch.tensor([before + row], device=lm.device), use_cache=False).logits[
        0, len(before) :
    ]


def check(lm: FrozenLM, prefix: Prefix, before: list[int]) -> None:
    with torch.no_grad():
        wanted = torch.cat([whole_text(lm, before, row) for row in ROWS])
        ours = lm.logits(packed_hidden_states(lm, prepare_prefixes(lm, [prefix]), [Row(row) for row in ROWS]))
    check_close(ours, wanted)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_prompt_of_a_text(family: str, around: tuple[tuple[int, ...], tuple[int, ...]], bos: bool) -> None:
    lm, (lead, follow) = tiny_lm(family, bos=bos), around
    lead = (*bos_ids(lm.tokenizer), *lead)
    assert (lead[:1] == (lm.tokenizer.bos_token_id,)) is bos
    prefix = Prefix(EmbeddingPrompt(lm.embed(TEXT)), lead, follow)
    check(lm, prefix, [*lead, *TEXT, *follow])


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("follow", [(), (33, 34, 35)])
@pytest.mark.parametrize("family", FAMILIES)
def test_kv_prompt_harvested_from_a_text(family: str, follow: tuple[int, ...], bos: bool) -> None:
    lm = tiny_lm(family, bos=bos)
    text = [*bos_ids(lm.tokenizer), *TEXT]
    check(lm, Prefix(harvest(lm, text), follow=follow), [*text, *follow])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_law_is_not_empty(family: str) -> None:
    """Another text gives other logits: the models feel their prefix."""
    lm = tiny_lm(family)
    with pytest.raises(AssertionError):
        check(lm, Prefix(EmbeddingPrompt(lm.embed(TEXT))), [*TEXT[:-1], TEXT[-1] + 1])
    with pytest.raises(AssertionError):
        check(lm, Prefix(harvest(lm, TEXT)), [TEXT[0] + 1, *TEXT[1:]])
