"""The laws for encoder–decoders beside T5, each against Transformers' own model on concatenated inputs.

BART's positions are learned, Marian's and Pegasus' are sinusoidal, and these two scale embeddings that are looked up;
T5Gemma rotates, has windows and halves of different widths; LongT5's encoder attends in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from softprompt.errors import DataError, UnsupportedModelError
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.methods.base import Start
from softprompt.methods.registry import build_method
from softprompt.models.encoder_decoder import writing_config
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.transformers_compat import CACHE_ARGUMENT
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import exact_sites, prepare_prefixes, start_decoding
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.seq2seq import SITES, Seq2SeqPrefixKV, answer_hidden_states, record_text_kv
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt, check_fits
from tests.laws.seq2seq import END, at, check_close, only
from tests.laws.test_seq2seq import split
from tests.support.cases import examples, gradient_tensors, random_prompt, text_ids
from tests.support.encoder_decoders import FAMILIES, tiny_encoder_decoder, tiny_encoder_decoder_model
from tests.support.tasks import context_of

TEXT, ANSWER = text_ids(9, 1), text_ids(7, 2)
LENGTHS = (9, 2, 15, 3, 1, 7, 12, 4)  # the row of one token learns nothing
OWNERS = (0, 1, 2, 3, 4, 5, 6, 1)


def of_sites(lm: FrozenLM, prompt: SoftPrompt, *sites: str) -> KVPrompt:
    """A KV prompt at those of the sites where keys and values are exact."""
    return only(lm, prompt, [site for site in sites if site in exact_sites(lm)])


def mixed(lm: FrozenLM, *, grad: bool = False) -> list[Prefix]:
    """Both forms, sites alone and together, unequal lengths, with and without text around, and none at all.

    The encoder's keys and values are left out: only those of tokens have a truth to compare with.
    """
    kv = [
        Prefix(of_sites(lm, random_prompt(lm, "kv", 3 + i, i, grad=grad), *sites), (), (30, 31) if i % 2 else ())
        for i, sites in enumerate((("decoder",), ("cross",), ("decoder", "cross")))
    ]
    return [
        Prefix(random_prompt(lm, "embedding", 4, 8, grad=grad), (3, 9), (20, 21)),
        *kv,
        Prefix(random_prompt(lm, "embedding", 1, 9, grad=grad)),
        Prefix(None, (40,), (41, 42)),
        Prefix(),
    ]


def plain_logits(lm: FrozenLM, prefix: Prefix, text: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Logits [len(answer), V] by Transformers' own model: embeddings concatenated, keys and values in its caches."""
    parts = [lm.embed(torch.tensor(prefix.lead, dtype=torch.long, device=lm.device))]
    if isinstance(prefix.prompt, EmbeddingPrompt):
        parts.append(prefix.prompt.embeddings)
    parts.append(lm.embed([*prefix.follow, *text, END]))
    model: Any = lm.hf_model
    states = model.get_encoder()(inputs_embeds=torch.cat(parts)[None]).last_hidden_state
    own, cross = DynamicCache(config=writing_config(model.config)), DynamicCache()
    for cache, site in ((own, "decoder"), (cross, "cross")):
        for i, kv in enumerate(at(lm, prefix, site)):
            if kv is not None:
                cache.update(kv[0][None], kv[1][None], i)
    both = EncoderDecoderCache(own, cross)
    both.is_updated = {}  # the cross-attention's keys and values are not known yet: append them
    ids = torch.tensor([[*lm.start_ids, *answer[:-1]]], device=lm.device)
    out = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        decoder_input_ids=ids,
        **{CACHE_ARGUMENT: both},
        use_cache=True,
    )
    return out.logits[0, -len(answer) :]


def own_logits(lm: FrozenLM, text: Sequence[int], answer: Sequence[int]) -> Tensor:
    """What the model itself says, fed ids and nothing else."""
    ids = torch.tensor([[*lm.start_ids, *answer[:-1]]], device=lm.device)
    return lm.hf_model(
        input_ids=torch.tensor([[*text, END]], device=lm.device), decoder_input_ids=ids, use_cache=False
    ).logits[0]


def ours(lm: FrozenLM, prefix: Prefix, text: Sequence[int], answer: Sequence[int]) -> Tensor:
    prefixes = prepare_prefixes(lm, [prefix])
    assert isinstance(prefixes, Seq2SeqPrefixKV)
    return lm.logits(answer_hidden_states(lm, prefixes, [text], [answer], [0]))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_law_1_an_embedding_prompt_of_a_text_is_the_text(family: str) -> None:
    lm, row = tiny_encoder_decoder(family), text_ids(5, 3)
    prefix = Prefix(EmbeddingPrompt(lm.embed(TEXT)), (31, 32), (33,))
    check_close(ours(lm, prefix, row, ANSWER), own_logits(lm, [31, 32, *TEXT, 33, *row], ANSWER))
    assert (own_logits(lm, [*TEXT, *row], ANSWER) - own_logits(lm, row, ANSWER)).abs().max() > 0.05


@pytest.mark.parametrize("sites", [("encoder", "cross"), ("decoder",), SITES])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_law_1_keys_and_values_taken_in_context_stand_for_their_tokens(family: str, sites: tuple[str, ...]) -> None:
    """The text's first tokens may go with those of encoder and cross-attention, the answer's with the decoder's."""
    lm, p = tiny_encoder_decoder(family), 4
    if not set(sites) <= set(exact_sites(lm)):
        assert family == "longt5" and "encoder" in sites
        return
    written = [*lm.start_ids, *text_ids(p - len(lm.start_ids), 6), *ANSWER]
    layers = record_text_kv(lm, [*TEXT, END], written)
    cut = KVPrompt(tuple(None if kv is None else (kv[0][0, :, :p], kv[1][0, :, :p]) for kv in layers))
    text, answer = (TEXT[p:] if "encoder" in sites else TEXT), ANSWER
    prefixes = prepare_prefixes(lm, [Prefix(only(lm, cut, sites))])
    assert isinstance(prefixes, Seq2SeqPrefixKV)
    whole = lm.hf_model(
        input_ids=torch.tensor([[*TEXT, END]], device=lm.device),
        decoder_input_ids=torch.tensor([written], device=lm.device),
    ).logits[0]
    if "decoder" in sites:  # the decoder's first token of this call is the answer's first, not a start token
        session_text, starts = text, lm.start_ids
        lm.__dict__["start_ids"] = (ANSWER[0],)
        try:
            found = lm.logits(answer_hidden_states(lm, prefixes, [session_text], [[*answer[1:], 0]], [0]))
        finally:
            lm.__dict__["start_ids"] = starts
        check_close(found, whole[p:])
    else:
        check_close(lm.logits(answer_hidden_states(lm, prefixes, [text], [answer], [0])), own_logits(lm, TEXT, answer))


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_law_2_loss_and_gradient(family: str, checkpointed: bool) -> None:
    """All kinds of prefixes in one batch, each row with its own."""
    lm, rows = tiny_encoder_decoder(family), examples(LENGTHS)
    prefixes = mixed(lm, grad=True)
    leaves = gradient_tensors(prefixes)
    with lm.checkpoint_layers(checkpointed):
        loss = token_losses(lm, prepare_prefixes(lm, prefixes), rows, OWNERS).sum()
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
    losses = [torch.zeros(0, device=lm.device)]
    for row, owner in zip(rows, OWNERS, strict=True):
        if any(row.mask):
            text, answer, mask = split(row)
            logits = plain_logits(lm, prefixes[owner], text, answer)
            losses.append(cross_entropy(logits[mask], torch.tensor(answer, device=lm.device)[mask], reduction="none"))
    wanted = torch.autograd.grad(torch.cat(losses).sum(), leaves, allow_unused=True)
    assert_close(loss, torch.cat(losses).sum(), rtol=1e-5, atol=0)
    felt = 0
    for one, other in zip(found, wanted, strict=True):
        if other is not None and other.norm() > 0:
            assert one is not None and (one - other).norm() <= 1e-4 * other.norm()
            felt += 1
    assert felt >= 2 + 2 * 2 * lm.geometry.sites.count("decoder")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_law_3_greedy_answers(family: str) -> None:
    """A batch of all kinds of prompts says what Transformers says of each row alone, token by token."""
    lm, prefixes = tiny_encoder_decoder(family), mixed(tiny_encoder_decoder(family))
    texts = [text_ids(n, 400 + n) for n in (3, 11, 1, 7, 14, 2, 5)]
    ends = list(range(0, 300, 9))
    sampling = Sampling(max_new_tokens=8)
    answers = decode_batch(lm, prepare_prefixes(lm, prefixes), texts, range(7), sampling, end_ids=[ends] * 7)
    for text, prefix, answer in zip(texts, prefixes, answers, strict=True):
        wanted: list[int] = []
        while len(wanted) < 8 and (token := int(plain_logits(lm, prefix, text, [*wanted, 0])[-1].argmax())) not in ends:
            wanted.append(token)
        assert answer.ids == wanted


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_law_3_a_session_with_rows_that_leave_and_split(family: str) -> None:
    lm, prefixes = tiny_encoder_decoder(family), mixed(tiny_encoder_decoder(family))
    texts, prefix_ids = [text_ids(n, n) for n in (3, 11, 1, 7, 5, 2, 9)], list(range(7))
    growing = start_decoding(lm, prepare_prefixes(lm, prefixes), texts, prefix_ids, room=3)
    active, written = list(range(7)), [[] for _ in range(7)]
    for step, kept in enumerate(([6, 2, 0, 1, 5, 3, 4], [1, 3, 3, 0, 6], [0, 2, 1])):
        growing.keep(torch.tensor(kept))
        active, written = [active[i] for i in kept], [written[i] for i in kept]
        new = text_ids(len(active), 300 + step)
        written = [[*old, token] for old, token in zip(written, new, strict=True)]
        states = growing.step(torch.tensor(new, device=lm.device))
        for i, row in enumerate(active):
            wanted = plain_logits(lm, prefixes[prefix_ids[row]], texts[row], [*written[i], 0])[-1:]
            check_close(lm.logits(states[i : i + 1]), wanted)


@torch.no_grad()
def test_an_encoder_that_chooses_its_attention_by_length_does_so_for_each_text() -> None:
    """BigBird attends to all of a short text, and would go on so; a long one beside it is not padded with it."""
    lm, long, short = tiny_encoder_decoder("bigbird_pegasus"), text_ids(70, 5), text_ids(6, 6)
    fresh: Any = tiny_encoder_decoder_model("bigbird_pegasus")
    read, ids = (
        torch.tensor([[*long, END]], device=lm.device),
        torch.tensor([[*lm.start_ids, *ANSWER[:-1]]], device=lm.device),
    )
    wanted = fresh(input_ids=read, decoder_input_ids=ids).logits[0]
    prefixes = prepare_prefixes(lm, [Prefix()])
    assert isinstance(prefixes, Seq2SeqPrefixKV)
    states = answer_hidden_states(lm, prefixes, [short, long, short], [ANSWER] * 3, [0] * 3)
    check_close(lm.logits(states[len(ANSWER) : 2 * len(ANSWER)]), wanted)
    fresh.get_encoder().set_attention_type("original_full")
    assert (fresh(input_ids=read, decoder_input_ids=ids).logits[0] - wanted).abs().max() > 0.05


def test_a_site_without_exact_keys_and_values_is_refused_by_name() -> None:
    """LongT5's encoder attends in blocks, which no keys and values can precede; what is exact there is trained."""
    lm = tiny_encoder_decoder("longt5")
    assert exact_sites(lm) == ("decoder", "cross")
    start = Start(4, "text", tuple(TEXT))
    with pytest.raises(UnsupportedModelError, match="site 'encoder' are not exact on longt5 models") as caught:
        build_method("prefix-tuning", lm, start, context_of("prefix-tuning", sites="encoder"))
    assert caught.value.hint == "--method.sites decoder,cross"
    (prompt,) = build_method("prefix-tuning", lm, start, context_of("prefix-tuning")).freeze()
    check_fits(prompt, lm.geometry)
    assert isinstance(prompt, KVPrompt)
    there = {site for site, kv in zip(lm.geometry.sites, prompt.layers, strict=True) if kv is not None}
    assert there == {"decoder", "cross"}


@torch.no_grad()
def test_answers_longer_than_the_decoder_are_refused() -> None:
    lm = tiny_encoder_decoder("bart")
    prefixes = prepare_prefixes(lm, [Prefix(of_sites(lm, random_prompt(lm, "kv", 9, 1), "decoder"))])
    assert isinstance(prefixes, Seq2SeqPrefixKV)
    start_decoding(lm, prefixes, [TEXT], [0], room=54)
    with pytest.raises(DataError, match="do not fit in the decoder"):
        start_decoding(lm, prefixes, [TEXT], [0], room=55)
    with pytest.raises(DataError, match="do not fit in the decoder"):
        answer_hidden_states(lm, prefixes, [TEXT], [text_ids(55, 1)], [0])


def test_the_paths() -> None:
    for family in FAMILIES:
        lm = tiny_encoder_decoder(family)
        sites = exact_sites(lm)
        assert PrefixRuntime.of(lm).path == "concatenated"
        assert sites == (SITES if family != "longt5" else SITES[1:])
    assert tiny_encoder_decoder("pegasus").encoder_decoder.embedding_scale == 32**0.5
