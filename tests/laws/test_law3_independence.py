"""Law 3: what a row gets does not depend on its batch mates, their prompts, the packing or the order."""

from __future__ import annotations

import functools
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.prefix.decoding import DecodingSession
from softprompt.prefix.kv import PrefixKV
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from tests.support.cases import FIRST, check_close, mixed_prefixes, text_ids
from tests.support.tiny import FAMILIES, VOCAB, tiny_lm

PREFIXES = 6  # of `mixed_prefixes`
Lengths = st.lists(st.tuples(st.integers(1, 14), st.integers(0, PREFIXES - 1)), min_size=2, max_size=7)


@functools.cache
def one_prefix(family: str, owner: int) -> PrefixKV:
    """This prefix alone."""
    lm = tiny_lm(family)
    with torch.no_grad():
        return prepare_prefixes(lm, [mixed_prefixes(lm)[owner]])


@functools.cache
def many_prefixes(family: str) -> PrefixKV:
    lm = tiny_lm(family)
    with torch.no_grad():
        return prepare_prefixes(lm, mixed_prefixes(lm))


def alone(family: str, ids: list[int], owner: int) -> Tensor:
    """Logits [T, V] of a row that has the model for itself."""
    lm = tiny_lm(family)
    with torch.no_grad():
        return lm.logits(packed_hidden_states(lm, one_prefix(family, owner), [Row(ids)]))


@given(st.sampled_from(FAMILIES), Lengths, st.integers(1, 60) | st.none(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_packed_rows(family: str, kinds: list[tuple[int, int]], capacity: int | None, order: Random) -> None:
    lm = tiny_lm(family)
    rows = [Row(text_ids(n, 100 + i), owner) for i, (n, owner) in enumerate(kinds)]
    order.shuffle(rows)
    with torch.no_grad():
        states = packed_hidden_states(lm, many_prefixes(family), rows, capacity=capacity)
    parts = lm.logits(states).split([len(row.ids) for row in rows])
    for row, ours in zip(rows, parts, strict=True):
        check_close(ours, alone(family, list(row.ids), row.prefix))


@given(st.sampled_from(FAMILIES), Lengths, st.data())
@settings(deadline=None, max_examples=80)
def test_session_with_rows_that_leave(family: str, kinds: list[tuple[int, int]], data: st.DataObject) -> None:
    """Rows of unequal length grow together and drop out at any time, in any order."""
    lm = tiny_lm(family)
    rows = [text_ids(n, 200 + i) for i, (n, _) in enumerate(kinds)]
    prefix_ids = [owner for _, owner in kinds]
    session, active = DecodingSession(lm, many_prefixes(family), rows, prefix_ids, room=4), list(range(len(rows)))
    for step in range(4):
        kept = data.draw(
            st.permutations(range(len(active))).flatmap(
                lambda order: st.integers(1, len(order)).map(lambda n: order[:n])
            )
        )
        session.keep(torch.tensor(kept))
        active = [active[i] for i in kept]
        new = text_ids(len(active), 300 + step)
        states = session.step(torch.tensor(new, device=lm.device))
        assert states is session.hidden
        for i, row in enumerate(active):
            rows[row] = [*rows[row], new[i]]
            check_close(lm.logits(states[i : i + 1]), alone(family, rows[row], prefix_ids[row])[-1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers(family: str) -> None:
    """Mixed prompts, rows that finish at different times: each gets what it gets alone."""
    lm = tiny_lm(family)
    rows = [text_ids(n, 400 + n) for n in (3, 11, 1, 7, 14, 2, 5)]
    prefix_ids, ends = [0, 1, 2, 3, 4, 5, 1], [*range(FIRST), *range(FIRST, VOCAB, 9)]
    sampling = Sampling(max_new_tokens=12)
    together = decode_batch(lm, many_prefixes(family), rows, prefix_ids, sampling, end_ids=[ends] * len(rows))
    for row, owner, ours in zip(rows, prefix_ids, together, strict=True):
        (single,) = decode_batch(lm, one_prefix(family, owner), [row], [0], sampling, end_ids=[ends])
        assert (ours.ids, ours.text, ours.finish) == (single.ids, single.text, single.finish)


def test_greedy_answers_do_end_at_different_times() -> None:
    """Else the test above would not try `Session.keep`."""
    lm = tiny_lm("llama")
    rows = [text_ids(n, 400 + n) for n in (3, 11, 1, 7, 14, 2, 5)]
    ends = [*range(FIRST), *range(FIRST, VOCAB, 9)]
    answers = decode_batch(
        lm, many_prefixes("llama"), rows, [0, 1, 2, 3, 4, 5, 1], Sampling(max_new_tokens=12), end_ids=[ends] * 7
    )
    assert len({len(answer.ids) for answer in answers}) > 2
    assert {answer.finish for answer in answers} == {"stop", "length"}


def test_the_prefix_is_felt() -> None:
    """Else independence would be empty."""
    ids = text_ids(5, 1)
    logits = [alone("llama", ids, owner) for owner in range(PREFIXES)]
    for one in range(PREFIXES):
        for other in range(one):
            assert (logits[one] - logits[other]).abs().max() > 0.1
