"""Rows in bins: every token once, rows of different prefixes apart, and each token sees its own row's past only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.prefix.packing import CAPACITIES, PAIR_COST, Row, best_capacity, by_tokens, pack

Capacity = st.integers(1, 120)


@st.composite
def trees(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """Parents of a row of this size, each before its children."""
    return tuple(draw(st.integers(-1, q - 1)) for q in range(size))


@st.composite
def row_lists(draw: st.DrawFn) -> list[Row]:
    rows, token = [], 1000
    for _ in range(draw(st.integers(1, 8))):
        size = draw(st.integers(1, 12))
        parents = draw(st.none() | trees(size))
        rows.append(Row(range(token, token + size), draw(st.integers(0, 3)), parents))  # every token another id
        token += size
    return rows


def ancestors(parents: Sequence[int], q: int) -> set[int]:
    """q and every token on the way from it to the prefix, the slow way."""
    seen = set()
    while q >= 0:
        seen.add(q)
        q = parents[q]
    return seen


def chain(row: Row) -> Sequence[int]:
    return row.parents if row.parents is not None else range(-1, len(row.ids) - 1)


@given(row_lists(), Capacity)
@settings(deadline=None, max_examples=200)
def test_every_token_stands_once_in_the_order_given(rows: list[Row], capacity: int) -> None:
    bins = pack(rows, capacity)
    ids = [token for row in rows for token in row.ids]
    assert bins.ids.flatten()[bins.flat].tolist() == ids
    assert len(set(bins.flat.tolist())) == len(ids)
    assert int((bins.ids > 0).sum()) == len(ids), "nothing else is there"


@given(row_lists(), Capacity)
@settings(deadline=None, max_examples=200)
def test_each_token_sees_its_ancestors_and_nothing_else(rows: list[Row], capacity: int) -> None:
    """Brute force: all pairs of a bin, so rows of one bin do not see each other either."""
    bins = pack(rows, capacity)
    length = bins.ids.shape[1]
    wanted = torch.zeros_like(bins.visible)
    wanted[:, range(length), range(length)] = True  # padding sees itself
    places = bins.flat.split([len(row.ids) for row in rows])
    for row, place in zip(rows, places, strict=True):
        bin_of, slots = place // length, (place % length).tolist()
        for q, slot in enumerate(slots):
            seen = ancestors(chain(row), q)
            wanted[bin_of[0], slot, [slots[k] for k in seen]] = True
            assert bins.depth.flatten()[place[q]] == len(seen) - 1
    assert torch.equal(bins.visible, wanted)


@given(row_lists(), Capacity)
@settings(deadline=None, max_examples=200)
def test_a_bin_has_one_prefix_and_holds_whole_rows(rows: list[Row], capacity: int) -> None:
    bins = pack(rows, capacity)
    length = bins.ids.shape[1]
    used = set()
    for row, place in zip(rows, bins.flat.split([len(row.ids) for row in rows]), strict=True):
        numbers = {p // length for p in place.tolist()}
        assert len(numbers) == 1
        assert bins.prefix[numbers.pop()] == row.prefix
        assert place.tolist() == list(range(place[0], place[0] + len(row.ids))), "in one piece"
        used |= {int(place[0]) // length}
    assert used == set(range(len(bins.ids))), "no empty bin"


@given(row_lists())
@settings(deadline=None, max_examples=100)
def test_the_extremes(rows: list[Row]) -> None:
    """A large capacity packs all rows of a prefix into one bin; bins are never much fuller than asked."""
    assert len(pack(rows, 10_000).ids) == len({row.prefix for row in rows})
    longest = max(len(row.ids) for row in rows)
    for capacity in (1, 20):
        assert pack(rows, capacity).ids.shape[1] <= max(capacity, longest) + longest


def test_capacity_one_is_plain_padding_for_rows_of_one_length() -> None:
    bins = pack([Row(range(5))] * 4, 1)
    assert bins.ids.shape == (4, 5)


@given(row_lists(), st.integers(0, 200), st.floats(1, 1e6), st.floats(1, 1e6))
@settings(deadline=None, max_examples=60)
def test_best_capacity(rows: list[Row], prefix: int, token: float, pair: float) -> None:
    """Holds the longest row, and of all capacities on offer none is estimated cheaper."""
    longest = max(len(row.ids) for row in rows)

    def cost(capacity: int) -> float:
        bins, length = pack(rows, capacity).ids.shape
        return bins * length * (token + (prefix + length) * pair * PAIR_COST)

    capacity = best_capacity(rows, prefix, token, pair)
    assert capacity >= longest
    assert cost(capacity) <= min(map(cost, [longest, *CAPACITIES])) * (1 + 1e-9)


def test_best_capacity_weighs_padding_against_attention() -> None:
    rows = [Row(range(60)), *[Row(range(50))] * 3]
    assert best_capacity(rows, 0, token_cost=1e9, pair_cost=1.0) > 60, "dear tokens: all in one, nothing padded"
    assert best_capacity(rows, 0, token_cost=1.0, pair_cost=1e9) == 60, "dear attention: a bin for each"


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 60))
def test_by_tokens(lengths: list[int], limit: int) -> None:
    """Every row once, short ones first, and no group over the limit but of a single row."""
    groups = list(by_tokens(lengths, limit))
    order = [i for group in groups for i in group]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths)
    for group in groups:
        assert len(group) == 1 or 0 < sum(lengths[i] for i in group) <= limit
