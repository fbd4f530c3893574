"""A KV prompt of the tokens that rows look at most: all of them are the text, fewer are nearer to it than its start."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.compaction.selection import (
    SelectionInput,
    _attention_to_text,
    _best_runs,
    select_by_attention,
    select_ids_by_attention,
)
from softprompt.data.tokenize import Example
from softprompt.errors import ConfigError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.attention_trace import record_attention
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import compute_keys_values, prepare_prefixes
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import KVPrompt
from tests.support.cases import text_ids
from tests.support.tiny import FAMILIES, tiny_lm

FOLLOW = (50, 51)


def rows(count: int, seed: int = 0) -> list[Example]:
    found = []
    for i in range(count):
        ids = text_ids(6, seed + i)
        found.append(Example(tuple(ids), (False, False, False, True, True, True), f"f:{i}"))
    return found


@torch.no_grad()
def states(lm: FrozenLM, prompt: SoftPrompt | None, lead: tuple[int, ...] = ()) -> torch.Tensor:
    return packed_hidden_states(
        lm, prepare_prefixes(lm, [Prefix(prompt, lead, FOLLOW)]), [Row(row.ids) for row in rows(4, 100)]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_all_tokens_are_the_text(family: str) -> None:
    lm, text = tiny_lm(family), tuple(text_ids(9, 1))
    prompt = select_by_attention(lm, [SelectionInput(text, FOLLOW, rows(3))], len(text))
    assert_close(states(lm, prompt), states(lm, None, text), rtol=1e-4, atol=1e-4)


def test_every_head_keeps_its_own() -> None:
    """The kept keys are the text's, moved to the end; each head's are those with most attention, first token apart."""
    lm, text = tiny_lm("llama"), tuple(text_ids(24, 1))
    whole = select_by_attention(lm, [SelectionInput(text, FOLLOW, rows(3))], len(text))
    part = select_by_attention(lm, [SelectionInput(text, FOLLOW, rows(3))], 6)
    chosen = []
    for some, every in zip(part.layers, whole.layers, strict=True):
        assert some is not None and every is not None
        for head in range(some[1].shape[0]):
            same = (some[1][head][:, None] == every[1][head][None]).all(-1)  # values do not move
            assert same.sum(1).eq(1).all()
            places = same.float().argmax(1).tolist()
            assert places == sorted(places) and places[0] == 0
            chosen.append(tuple(places))
    assert len(set(chosen)) > 1, "heads differ"


def test_it_is_nearer_to_the_text_than_its_first_tokens() -> None:
    lm, text = tiny_lm("llama"), tuple(text_ids(40, 1))
    wanted = states(lm, None, text)
    attended = states(lm, select_by_attention(lm, [SelectionInput(text, FOLLOW, rows(8))], 12))
    first = states(lm, None, text[:12])
    assert (attended - wanted).norm() < 0.8 * (first - wanted).norm()


def test_several_texts_share_one_first_token() -> None:
    lm, texts = tiny_lm("llama"), [tuple(text_ids(8, seed)) for seed in (1, 2)]
    readings = [SelectionInput(text, FOLLOW, rows(2, i)) for i, text in enumerate(texts)]
    prompt = select_by_attention(lm, readings, 10)
    sinks = [select_by_attention(lm, [reading], 8) for reading in readings]
    for own, first, second in zip(prompt.layers, *(sink.layers for sink in sinks), strict=True):
        assert own is not None and first is not None and second is not None
        assert torch.equal(own[1][:, 0], first[1][:, 0])
        for head in range(own[1].shape[0]):
            assert not (own[1][head] == second[1][head][0]).all(-1).any()


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)fewer tokens than.*--n-tokens 9"):
        select_by_attention(tiny_lm("llama"), [SelectionInput(tuple(text_ids(9, 1)), (), rows(1))], 10)


def test_where_positions_are_learned_keys_stay_as_they_are() -> None:
    lm, text = tiny_lm("gpt2"), tuple(text_ids(12, 1))
    part = select_by_attention(lm, [SelectionInput(text, FOLLOW, rows(3))], 4)
    for some, whole in zip(part.layers, compute_keys_values(lm, Prefix(lead=text)), strict=True):
        assert some is not None and whole is not None
        for mine, every in ((some[0], whole[0][0]), (some[1], whole[1][0])):
            for head in range(mine.shape[0]):
                assert (mine[head][:, None] == every[head][None]).all(-1).sum(1).eq(1).all()


def test_it_is_a_plain_prompt() -> None:
    prompt = select_by_attention(tiny_lm("llama"), [SelectionInput(tuple(text_ids(9, 1)), (), rows(1))], 4)
    assert isinstance(prompt, KVPrompt) and prompt.n_tokens == 4
    assert all(kv is not None and not kv[0].requires_grad and kv[0].dtype == torch.float32 for kv in prompt.layers)


def test_an_embedding_prompt_keeps_the_runs_that_get_most_attention() -> None:
    lm, lead, text = tiny_lm("llama"), tuple(text_ids(2, 5)), tuple(text_ids(30, 1))
    reading = SelectionInput((*lead, *text), FOLLOW, rows(3), opening=2)
    worth = _attention_to_text(lm, reading)
    assert worth.shape == (30,) and worth.min() > 0
    single, fours = select_ids_by_attention(lm, [reading], 8, (1, 4))
    assert single == tuple(text[i] for i in sorted(worth.topk(8).indices.tolist()))
    best = max(range(27), key=lambda start: float(worth[start : start + 4].sum()))
    assert tuple(text[best : best + 4]) in (fours[:4], fours[4:])
    (whole,) = select_ids_by_attention(lm, [reading], 30, (4,))
    assert whole == text
    (longer,) = select_ids_by_attention(lm, [reading, reading], 31, (64,))
    assert longer in [(*text, *text)[start : start + 31] for start in range(30)]
    with pytest.raises(ConfigError, match="fewer tokens than virtual tokens"):
        select_ids_by_attention(lm, [reading], 31, (1,))


@pytest.mark.parametrize(
    ("run", "wanted"), [(1, [0, 3, 8, 9]), (2, [2, 3, 8, 9]), (4, [6, 7, 8, 9]), (3, [3, 7, 8, 9])]
)
def test_runs_are_whole_and_never_overlap(run: int, wanted: list[int]) -> None:
    worth = torch.tensor([4.0, 0, 2, 5, 0, 3, 0, 0, 4, 9])
    assert _best_runs(worth, 4, run) == wanted


def test_with_traces_a_token_counts_by_its_largest_weight() -> None:
    """One token that a single query needs is kept before those that all queries look at a little."""
    lm, text = tiny_lm("llama"), tuple(text_ids(24, 1))
    source = SelectionInput(text, FOLLOW, rows(3))
    prefixes = prepare_prefixes(lm, [Prefix(lead=text, follow=FOLLOW)])
    traces = record_attention(lm, prefixes, [Row(row.ids) for row in source.rows], lambda states, _: states.sum())
    prompt = select_by_attention(lm, [source], 6, [traces])
    whole = select_by_attention(lm, [source], len(text))
    computed = compute_keys_values(lm, Prefix(lead=text, follow=FOLLOW))
    for some, every, trace, kv in zip(prompt.layers, whole.layers, traces, computed, strict=True):
        assert some is not None and every is not None and trace is not None and kv is not None
        peaks = trace.peaks(kv[0][0])[:, : len(text)]
        for head in range(some[1].shape[0]):
            wanted = sorted([0, *(1 + peaks[head, 1:].topk(5).indices).tolist()])
            assert torch.equal(some[1][head], every[1][head][wanted])
    summed = select_by_attention(lm, [source], 6)
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(prompt.layers, summed.layers, strict=True) if a and b)
