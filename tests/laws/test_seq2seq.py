"""The laws for encoder–decoders: T5, T5 1.1 (gated, as FLAN-T5), mT5, umT5.

Law 1 holds for embedding prompts. It does not for KV prompts that are harvested from a text: the encoder looks both
ways, so the text's keys and values are others once something comes after it. What holds is that the keys and values
which tokens have *with* all that comes after them stand for these tokens, at every site.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import softprompt.prefix.seq2seq as module
from softprompt.data.tokenize import Example
from softprompt.errors import UnsupportedModelError
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.methods.base import Start
from softprompt.methods.initializers import harvest
from softprompt.methods.registry import build_method
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.transformers_compat import cache_of
from softprompt.objectives.next_token import learned_tokens, token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes, start_decoding
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.seq2seq import SITES, Seq2SeqPrefixKV, answer_hidden_states, record_text_kv
from softprompt.prefix.verify import verify
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt, check_fits
from tests.laws.seq2seq import SUBSETS, at, check_close, mixed, only, own_logits, plain_encoder, plain_logits
from tests.support.cases import examples, gradient_tensors, random_prompt, text_ids
from tests.support.tasks import METHOD_NAMES, context_of
from tests.support.tiny import SEQ2SEQ_FAMILIES, tiny_seq2seq

TEXT, ANSWER = text_ids(9, 1), text_ids(4, 2)
LENGTHS = (9, 2, 15, 3, 1, 7, 12, 4, 2, 8)  # the row of one token learns nothing
OWNERS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 1)


def made(lm: FrozenLM, prefixes: Sequence[Prefix]) -> Seq2SeqPrefixKV:
    own = prepare_prefixes(lm, prefixes)
    assert isinstance(own, Seq2SeqPrefixKV)
    return own


def ours(lm: FrozenLM, prefix: Prefix, text: Sequence[int], answer: Sequence[int]) -> Tensor:
    return lm.logits(answer_hidden_states(lm, made(lm, [prefix]), [text], [answer], [0]))


def split(example: Example) -> tuple[tuple[int, ...], tuple[int, ...], list[bool]]:
    cut = example.mask.index(True)
    return example.ids[:cut], example.ids[cut:], list(example.mask[cut:])


def plain_losses(
    lm: FrozenLM, prefixes: Sequence[Prefix], rows: Sequence[Example], prefix_ids: Sequence[int]
) -> Tensor:
    losses = [torch.zeros(0, device=lm.device)]
    for row, owner in zip(rows, prefix_ids, strict=True):
        if any(row.mask):
            text, answer, mask = split(row)
            logits = plain_logits(lm, prefixes[owner], text, answer)
            losses.append(cross_entropy(logits[mask], torch.tensor(answer, device=lm.device)[mask], reduction="none"))
    return torch.cat(losses)


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
@torch.no_grad()
def test_the_oracle_is_the_model(family: str) -> None:
    lm = tiny_seq2seq(family)
    check_close(plain_logits(lm, Prefix(), TEXT, ANSWER), own_logits(lm, TEXT, ANSWER))


@pytest.mark.parametrize("around", [((), ()), ((31, 32), ()), ((31, 32), (33, 34, 35))])
@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
@torch.no_grad()
def test_law_1_an_embedding_prompt_of_a_text(family: str, around: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    lm, (lead, follow), row = tiny_seq2seq(family), around, text_ids(5, 3)
    prefix = Prefix(EmbeddingPrompt(lm.embed(TEXT)), lead, follow)
    check_close(ours(lm, prefix, row, ANSWER), own_logits(lm, [*lead, *TEXT, *follow, *row], ANSWER))
    with pytest.raises(AssertionError):
        check_close(ours(lm, Prefix(None, lead, follow), row, ANSWER), own_logits(lm, [*TEXT, *row], ANSWER))


@pytest.mark.parametrize("sites", SUBSETS)
@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
@torch.no_grad()
def test_law_1_keys_and_values_taken_in_context_stand_for_their_tokens(family: str, sites: tuple[str, ...]) -> None:
    """With the encoder's the text's first tokens may go, if the cross-attention's are given too; with the decoder's
    what it wrote first may go."""
    lm, p = tiny_seq2seq(family), 4
    written = [*text_ids(p, 6), 0, *ANSWER[:-1]]
    layers = record_text_kv(lm, [*TEXT, 2], written)
    cut = KVPrompt(tuple(None if kv is None else (kv[0][0, :, :p], kv[1][0, :, :p]) for kv in layers))
    gone = {"encoder", "cross"} <= set(sites)
    prefix = Prefix(only(lm, cut, sites if gone else [s for s in sites if s == "decoder"]))
    whole = lm.hf_model(
        input_ids=torch.tensor([[*TEXT, 2]], device=lm.device),
        decoder_input_ids=torch.tensor([written], device=lm.device),
    ).logits[0]
    wanted = whole[p:] if "decoder" in sites else own_logits(lm, TEXT, ANSWER)
    check_close(ours(lm, prefix, TEXT[p:] if gone else TEXT, ANSWER), wanted)


@torch.no_grad()
def test_a_harvested_text_is_not_the_text() -> None:
    """The bidirectional encoder: said here, so that nobody takes it for granted."""
    lm, row = tiny_seq2seq(), text_ids(5, 3)
    prompt = only(lm, harvest(lm, TEXT), ("encoder", "cross"))
    off = (ours(lm, Prefix(prompt), row, ANSWER) - own_logits(lm, [*TEXT, *row], ANSWER)).abs().max()
    assert off > 0.1


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
@torch.no_grad()
def test_what_is_harvested(family: str) -> None:
    """The keys and values of the text alone in the encoder, and of the decoder that is given it."""
    lm = tiny_seq2seq(family)
    prompt = harvest(lm, TEXT)
    check_fits(prompt, lm.geometry)
    states = lm.hf_model.get_encoder()(input_ids=torch.tensor([TEXT], device=lm.device)).last_hidden_state
    out: Any = cache_of(
        lm.hf_model(
            input_ids=torch.tensor([TEXT], device=lm.device),
            decoder_input_ids=torch.tensor([[0, *TEXT[:-1]]], device=lm.device),
            use_cache=True,
        )
    )
    for site, cache in (("decoder", out.self_attention_cache), ("cross", out.cross_attention_cache)):
        for kv, layer in zip(at(lm, Prefix(prompt), site), cache.layers, strict=True):
            assert kv is not None
            check_close(kv[0], layer.keys[0])
            check_close(kv[1], layer.values[0])
    first = at(lm, Prefix(prompt), "encoder")[0]
    block = lm.hf_model.get_encoder().block[0].layer[0]  # type: ignore[attr-defined]
    keys = block.SelfAttention.k(block.layer_norm(lm.embed(TEXT)))
    assert first is not None
    check_close(first[0].transpose(0, 1).flatten(1), keys)
    check_close(states[0], plain_encoder(lm, lm.embed(TEXT), [None] * 2))


@pytest.mark.parametrize("tokens", [1, 40, 8192])
@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_law_2_loss_and_gradient(family: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds of prefixes in one batch, each row with its own; whatever rows are run together."""
    monkeypatch.setattr(module, "_TOKENS", tokens)
    lm, rows = tiny_seq2seq(family), examples(LENGTHS)
    prefixes = mixed(lm, grad=True)
    leaves = gradient_tensors(prefixes)
    loss = token_losses(lm, prepare_prefixes(lm, prefixes), rows, OWNERS).sum()
    losses = plain_losses(lm, prefixes, rows, OWNERS)
    assert len(losses) == learned_tokens(rows)
    assert_close(loss, losses.sum(), rtol=1e-5, atol=0)
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    wanted = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    unfelt = 0
    for one, other in zip(found, wanted, strict=True):
        if other is None or other.norm() == 0:  # the row after it learns nothing
            unfelt += 1
            continue
        assert one is not None and (one - other).norm() <= 1e-4 * other.norm()
    assert unfelt == len(gradient_tensors([prefixes[4]]))


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_law_2_with_gradient_checkpointing(family: str) -> None:
    lm, rows = tiny_seq2seq(family), examples(LENGTHS)
    prefixes = mixed(lm, grad=True)
    leaves = gradient_tensors(prefixes)
    wanted = torch.autograd.grad(
        token_losses(lm, prepare_prefixes(lm, prefixes), rows, OWNERS).sum(), leaves, allow_unused=True
    )
    with lm.checkpoint_layers():
        found = torch.autograd.grad(
            token_losses(lm, prepare_prefixes(lm, prefixes), rows, OWNERS).sum(), leaves, allow_unused=True
        )
    for one, other in zip(found, wanted, strict=True):
        if other is not None:
            assert_close(one, other, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_log_likelihoods_come_in_the_order_of_the_rows() -> None:
    lm, rows = tiny_seq2seq(), examples(LENGTHS)
    found = token_losses(lm, prepare_prefixes(lm, mixed(lm)), rows, OWNERS)
    check_close(found, plain_losses(lm, mixed(lm), rows, OWNERS))


Kinds = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(0, 8)), min_size=2, max_size=6)


@given(st.sampled_from(SEQ2SEQ_FAMILIES), Kinds, st.integers(1, 60))
@settings(deadline=None, max_examples=40)
@torch.no_grad()
def test_law_3_batch_mates(family: str, kinds: list[tuple[int, int, int]], tokens: int) -> None:
    lm, prefixes = tiny_seq2seq(family), mixed(tiny_seq2seq(family))
    texts = [text_ids(n, 100 + i) for i, (n, _, _) in enumerate(kinds)]
    answers = [text_ids(n, 200 + i) for i, (_, n, _) in enumerate(kinds)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TOKENS", tokens)
        states = answer_hidden_states(lm, made(lm, prefixes), texts, answers, [owner for _, _, owner in kinds])
    parts = lm.logits(states).split([len(answer) for answer in answers])
    for text, answer, (_, _, owner), found in zip(texts, answers, kinds, parts, strict=True):
        check_close(found, plain_logits(lm, prefixes[owner], text, answer))


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
@torch.no_grad()
def test_law_3_a_session_with_rows_that_leave_and_split(family: str) -> None:
    lm, prefixes = tiny_seq2seq(family), mixed(tiny_seq2seq(family))
    texts, prefix_ids = [text_ids(n, n) for n in (3, 11, 1, 7, 5, 2, 9, 4, 6)], list(range(9))
    growing = start_decoding(lm, prepare_prefixes(lm, prefixes), texts, prefix_ids, room=4)
    active, written = list(range(9)), [[] for _ in range(9)]
    for step, kept in enumerate(([8, 2, 0, 1, 5, 3, 4, 6, 7], [1, 3, 3, 0, 8], [0, 2, 1])):
        growing.keep(torch.tensor(kept))
        active, written = [active[i] for i in kept], [written[i] for i in kept]
        new = text_ids(len(active), 300 + step)
        written = [[*old, token] for old, token in zip(written, new, strict=True)]
        states = growing.step(torch.tensor(new, device=lm.device))
        assert states is growing.hidden
        for i, row in enumerate(active):
            wanted = plain_logits(lm, prefixes[prefix_ids[row]], texts[row], [*written[i], 0])[-1:]
            check_close(lm.logits(states[i : i + 1]), wanted)


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
@torch.no_grad()
def test_law_3_greedy_answers(family: str) -> None:
    """A batch of all kinds of prompts says what Transformers says of each row alone, token by token."""
    lm, prefixes = tiny_seq2seq(family), mixed(tiny_seq2seq(family))
    texts = [text_ids(n, 400 + n) for n in (3, 11, 1, 7, 14, 2, 5, 4, 6)]
    ends = list(range(0, 300, 7))
    sampling = Sampling(max_new_tokens=8)
    answers = decode_batch(lm, prepare_prefixes(lm, prefixes), texts, range(9), sampling, end_ids=[ends] * 9)
    for text, prefix, answer in zip(texts, prefixes, answers, strict=True):
        wanted: list[int] = []
        while len(wanted) < 8 and (token := int(plain_logits(lm, prefix, text, [*wanted, 0])[-1].argmax())) not in ends:
            wanted.append(token)
        assert answer.ids == wanted
        assert answer.finish == ("length" if len(wanted) == 8 else "stop")
    assert len({len(answer.ids) for answer in answers}) > 1, "they end at different times"


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
@torch.no_grad()
def test_law_7_no_prompt_is_the_base_model(family: str) -> None:
    lm = tiny_seq2seq(family)
    prefixes = [*mixed(lm), Prefix()]
    for own, number in (([Prefix()], 0), (prefixes, 9)):
        states = answer_hidden_states(lm, made(lm, own), [TEXT], [ANSWER], [number])
        check_close(lm.logits(states), own_logits(lm, TEXT, ANSWER))
    assert made(lm, [Prefix()]).lengths == (0,)


@torch.no_grad()
def test_law_7_the_model_itself_stays_what_it_was() -> None:
    """The hooks that are left on it do nothing in calls of others."""
    lm = tiny_seq2seq()
    before = own_logits(lm, TEXT, ANSWER)
    answer_hidden_states(lm, made(lm, mixed(lm)), [TEXT], [ANSWER], [1])
    assert torch.equal(own_logits(lm, TEXT, ANSWER), before)


@pytest.mark.parametrize("sites", [(), *SUBSETS])
@pytest.mark.parametrize("init", ["text", "labels", "vocab", "uniform", "normal"])
@pytest.mark.parametrize("name", METHOD_NAMES)
def test_law_8_every_method_fits(name: str, init: str, sites: tuple[str, ...]) -> None:
    if name == "prompt-tuning" and sites:
        return
    lm = tiny_seq2seq("t5-1.1")
    start = Start(5, init, tuple(TEXT), ((7,), (8, 9)))
    context = context_of(name, frozen_tokens=1, sites=",".join(sites) or None)
    (prompt,) = build_method(name, lm, start, context).freeze()
    check_fits(prompt, lm.geometry)
    assert prompt.n_tokens == 5
    if isinstance(prompt, KVPrompt):
        there = {site for site, kv in zip(lm.geometry.sites, prompt.layers, strict=True) if kv is not None}
        assert there == set(sites or SITES)


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_it_is_verified_once(family: str) -> None:
    lm = tiny_seq2seq(family)
    PrefixRuntime.of(lm).exact = False
    verify(lm)
    assert PrefixRuntime.of(lm).exact


def test_a_wrong_head_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_seq2seq()
    PrefixRuntime.of(lm).exact = False
    logits = lm.logits
    monkeypatch.setattr(lm, "logits", lambda states: logits(2 * states))
    with pytest.raises(UnsupportedModelError, match="t5 models cannot take a prefix exactly"):
        verify(lm)


def test_what_is_for_causal_models_only_says_so() -> None:
    lm = tiny_seq2seq()
    with pytest.raises(UnsupportedModelError, match="needs a causal model"):
        packed_hidden_states(lm, prepare_prefixes(lm, [Prefix()]), [Row([5, 6])])


def test_virtual_tokens_cannot_be_hidden_from_a_row() -> None:
    lm = tiny_seq2seq()
    with pytest.raises(UnsupportedModelError, match="cannot hide virtual tokens"):
        prepare_prefixes(lm, [Prefix(random_prompt(lm, "embedding", 3, 1), masked_span=(0, 2))])
