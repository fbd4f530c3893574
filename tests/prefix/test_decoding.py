"""Decoding step by step equals the full forward pass."""

from __future__ import annotations

import pytest
import torch

from softprompt.errors import DataError
from softprompt.prefix.decoding import DecodingSession
from softprompt.prefix.kv import require_causal
from softprompt.prefix.prepare import prepare_prefixes
from tests.laws.oracle import plain_logits
from tests.support.cases import check_close, mixed_prefixes, pairs, same_kv, text_ids
from tests.support.tiny import FAMILIES, tiny_lm

STEPS = 6


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_steps_equal_the_full_forward(family: str) -> None:
    """Rows grow past the sliding window, after prefixes of every kind."""
    lm = tiny_lm(family)
    prefixes = mixed_prefixes(lm)
    prefix_ids = [*range(len(prefixes)), 1, 0]
    rows = [text_ids(n, 30 + i) for i, n in enumerate((3, 9, 1, 12, 2, 5, 4, 10))]
    session = DecodingSession(lm, prepare_prefixes(lm, prefixes), rows, prefix_ids, room=STEPS)
    for step in range(STEPS + 1):
        wanted = [plain_logits(lm, prefixes[o], row)[-1] for o, row in zip(prefix_ids, rows, strict=True)]
        assert session.hidden.shape == (len(rows), session.hidden.shape[1])
        check_close(lm.logits(session.hidden), torch.stack(wanted))
        if step < STEPS:
            new = text_ids(len(rows), 60 + step)
            rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
            session.step(torch.tensor(new, device=session.hidden.device))


def test_no_gradient_even_behind_a_live_prompt() -> None:
    lm = tiny_lm("llama")
    prefixes = mixed_prefixes(lm, grad=True)
    session = DecodingSession(lm, prepare_prefixes(lm, prefixes), [[5, 6]], [0], room=1)
    assert not session.hidden.requires_grad
    assert not session.step(torch.tensor([7], device=session.hidden.device)).requires_grad


def test_the_bank_is_not_written_to() -> None:
    """One PrefixKV serves many decodings."""
    lm = tiny_lm("llama")
    for prefixes in ([mixed_prefixes(lm)[1]], mixed_prefixes(lm)):
        own = require_causal(prepare_prefixes(lm, prefixes))
        before = [(keys.clone(), values.clone()) for keys, values in pairs(own.layers)]
        session = DecodingSession(lm, own, [[5, 6], [7]], [0, 0], room=2)
        session.step(torch.tensor([8, 9], device=session.hidden.device))
        session.keep(torch.tensor([1]))
        session.step(torch.tensor([8], device=session.hidden.device))
        assert same_kv(own.layers, before)


def test_the_context_is_bounded() -> None:
    lm = tiny_lm("llama")
    size = lm.geometry.max_positions
    prefixes = prepare_prefixes(lm, [mixed_prefixes(lm)[1]])
    room = size - prefixes.lengths[0] - 3
    DecodingSession(lm, prefixes, [[5, 6, 7]], [0], room=room)
    with pytest.raises(DataError, match=f"(?s)do not fit.*{size + 1}"):
        DecodingSession(lm, prefixes, [[5, 6, 7]], [0], room=room + 1)


def test_an_empty_row_is_refused() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(DataError, match="a row has no tokens"):
        DecodingSession(lm, prepare_prefixes(lm, [mixed_prefixes(lm)[0]]), [[5], []], [0, 0], room=1)


@pytest.mark.parametrize("index", [[2, 0], [0, 2], [2, 1], [1, 0, 2], [0, 0, 2], [0, 2, 1, 0], [1, 2], [0]])
@torch.no_grad()
def test_rows_can_be_put_in_another_order(index: list[int]) -> None:
    """Also where the kept rows stay at their places, or are more than before."""
    lm = tiny_lm("llama")
    own, rows = prepare_prefixes(lm, mixed_prefixes(lm)), [[5, 6], [7, 8, 9], [10]]
    session = DecodingSession(lm, own, rows, [0, 1, 2], room=2)
    first, new = session.hidden.clone(), [11, 12, 13, 14][: len(index)]
    session.keep(torch.tensor(index))
    assert torch.equal(session.hidden, first[index])
    session.step(torch.tensor(new, device=session.hidden.device))
    for i, (row, token) in enumerate(zip(index, new, strict=True)):
        wanted = plain_logits(lm, mixed_prefixes(lm)[row], [*rows[row], token])[-1]
        check_close(lm.logits(session.hidden)[i], wanted)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_behind_one_prefix(family: str) -> None:
    """Each kind of prefix alone; rows grow past the sliding window, end, change places and go on as two."""
    lm = tiny_lm(family)
    for prefix in mixed_prefixes(lm):
        rows = [text_ids(n, 30 + i) for i, n in enumerate((3, 9, 1, 12))]
        own = DecodingSession(lm, prepare_prefixes(lm, [prefix]), rows, [0] * len(rows), room=STEPS)
        for step in range(STEPS + 1):
            wanted = [plain_logits(lm, prefix, row)[-1] for row in rows]
            check_close(lm.logits(own.hidden), torch.stack(wanted))
            if step == 2:
                index = [3, 1, 1, 0]
                own.keep(torch.tensor(index))
                rows = [list(rows[i]) for i in index]
            if step < STEPS:
                new = text_ids(len(rows), 60 + step)
                rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
                own.step(torch.tensor(new, device=own.hidden.device))
