"""Decoding: which token comes next, when a text ends, and what is shown of it while it grows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softprompt.errors import ConfigError, DataError
from softprompt.inference import decoding
from softprompt.inference.answer import Answer
from softprompt.inference.decoding import decode_batch
from softprompt.inference.detokenizer import CUT
from softprompt.inference.sampling import Sampling, sample_token
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix, PrefixKV
from softprompt.prefix.prepare import prepare_prefixes
from tests.laws.oracle import plain_logits
from tests.support.cases import mixed_prefixes, text_ids
from tests.support.tiny import SPECIAL, VOCAB, tiny_lm

END = SPECIAL.index("<|im_end|>")
BYTES = range(len(SPECIAL), len(SPECIAL) + 256)
ROWS = [text_ids(n, 60 + n) for n in (4, 1, 9, 3)]
OWNERS = [0, 1, 3, 5]


@functools.cache
def prefixes(family: str = "llama") -> PrefixKV:
    lm = tiny_lm(family)
    with torch.no_grad():
        return prepare_prefixes(lm, mixed_prefixes(lm))


def made(sampling: Sampling, rows: Sequence[list[int]] = ROWS, prefix_ids: Sequence[int] = OWNERS) -> list[Answer]:
    return decode_batch(tiny_lm("llama"), prefixes(), rows, prefix_ids, sampling, end_ids=[[END]] * len(rows))


def say(tokens: Sequence[int], sampling: Sampling, ends: Sequence[int] = (END,)) -> tuple[Answer, list[str]]:
    """What comes out, and in which pieces, when the model says these tokens."""
    lm, calls, pieces = tiny_lm("llama"), iter(tokens), list[str]()

    def scripted(states: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(calls)] * len(states)), VOCAB).float()

    with torch.no_grad():
        own = prepare_prefixes(lm, [Prefix()])
    with patch.object(lm, "logits", scripted):
        (answer,) = decode_batch(
            lm, own, [[5]], [0], sampling, end_ids=[ends], on_text=lambda _, text: pieces.append(text)
        )
    return answer, pieces


def spell(text: str) -> list[int]:
    return [*tiny_lm("llama").encode(text), END]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mistral"])
@torch.no_grad()
def test_greedy_is_the_argmax_of_the_full_text(family: str) -> None:
    lm, steps = tiny_lm(family), 8
    answers = decode_batch(lm, prefixes(family), ROWS, OWNERS, Sampling(max_new_tokens=steps), end_ids=[[]] * len(ROWS))
    for row, owner, answer in zip(ROWS, OWNERS, answers, strict=True):
        text = list(row)
        for _ in range(steps):
            text.append(int(plain_logits(lm, mixed_prefixes(lm)[owner], text)[-1].argmax()))
        assert answer.ids == text[len(row) :]
        assert answer.finish == "length"


def test_a_seed_gives_the_same_texts() -> None:
    one, two, other = (made(Sampling(12, temperature=1.0, seed=seed)) for seed in (7, 7, 8))
    assert one == two
    assert [answer.ids for answer in one] != [answer.ids for answer in other]
    assert one != made(Sampling(12))


def test_a_sampled_row_does_not_depend_on_its_batch_mates() -> None:
    sampling = Sampling(12, temperature=1.2, top_k=50, top_p=0.95, seed=3)
    together = made(sampling)
    assert made(sampling, ROWS[:1], OWNERS[:1]) == together[:1]
    others = [ROWS[0], text_ids(13, 1), [7], ROWS[3]]
    assert made(sampling, others, [0, 2, 2, 5])[::3] == together[::3]


@pytest.mark.parametrize("size", [1, 3])
def test_many_rows_are_decoded_in_parts(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(8, temperature=1.2, seed=3)
    together = made(sampling)
    monkeypatch.setattr(decoding, "BATCH_ROWS", size)
    assert made(sampling) == together
    assert made(sampling, [], []) == []


@torch.no_grad()
def test_behind_one_prefix_as_many_rows_as_take_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Than a few would with a copy each: after a prefix of twice a row's length, three times as many."""
    lm, sizes = tiny_lm("llama"), list[int]()
    start = decoding.start_decoding

    def counted(
        lm: FrozenLM, own: PrefixKV, rows: Sequence[Sequence[int]], prefix_ids: Sequence[int], room: int
    ) -> object:
        sizes.append(len(rows))
        return start(lm, own, rows, prefix_ids, room)

    monkeypatch.setattr(decoding, "start_decoding", counted)
    monkeypatch.setattr(decoding, "BATCH_ROWS", 4)
    monkeypatch.setattr(decoding, "_MOST_ROWS", 20)
    rows = [[5 + i, 6] for i in range(15)]
    one, long = (
        prepare_prefixes(lm, [Prefix(lead=tuple(text_ids(8, 3)))]),
        prepare_prefixes(lm, [Prefix(lead=tuple(text_ids(90, 3)))]),
    )
    several = prepare_prefixes(lm, [Prefix(lead=tuple(text_ids(n, 3))) for n in (8, 9)])
    eager = tiny_lm("gemma2")
    copied = prepare_prefixes(eager, [Prefix(lead=tuple(text_ids(90, 3)))])
    every = ((lm, one, [12, 3]), (lm, long, [15]), (lm, several, [4, 4, 4, 3]), (eager, copied, [4, 4, 4, 3]))
    for base, own, wanted in every:
        decode_batch(base, own, rows, [0] * len(rows), Sampling(max_new_tokens=2), end_ids=[[]] * len(rows))
        assert sizes == wanted
        sizes.clear()
    monkeypatch.setattr(decoding, "_MOST_ROWS", 10)
    decode_batch(lm, long, rows, [0] * len(rows), Sampling(max_new_tokens=2), end_ids=[[]] * len(rows))
    assert sizes == [10, 5]


@torch.no_grad()
def test_the_logits_that_tokens_are_chosen_from_are_told() -> None:
    """Those of rows that go on, at every step, by the row's number."""
    lm, told = tiny_lm("llama"), [list[int]() for _ in ROWS]

    def on_logits(going: Sequence[int], logits: Tensor) -> None:
        assert logits.shape == (len(going), VOCAB) and logits.dtype == torch.float32
        for row, token in zip(going, logits.argmax(-1).tolist(), strict=True):
            told[row].append(token)

    ends = [END, *range(4, 260, 9)]
    found = decode_batch(lm, prefixes(), ROWS, OWNERS, Sampling(12), end_ids=[ends] * len(ROWS), on_logits=on_logits)
    assert len({len(answer.ids) for answer in found}) > 1
    for answer, tokens in zip(found, told, strict=True):
        assert tokens[: len(answer.ids)] == answer.ids
        assert len(tokens) == len(answer.ids) + (answer.finish == "stop")


@pytest.mark.parametrize("ending", [(0, 1), (0, 2), (1, 3, 4), (0, 1, 2, 3), (5,)])
def test_rows_that_end_together_leave_the_others_alone(ending: tuple[int, ...]) -> None:
    """Whichever rows are first to end: here at their second token."""
    rows, prefix_ids = [text_ids(n, 80 + n) for n in (4, 1, 9, 3, 6, 5)], [0, 1, 3, 5, 2, 0]
    sampling = Sampling(8, temperature=1.2, seed=3)
    alone = made(sampling, rows, prefix_ids)
    ends = [[answer.ids[1]] if i in ending else [END] for i, answer in enumerate(alone)]
    together = decode_batch(tiny_lm("llama"), prefixes(), rows, prefix_ids, sampling, end_ids=ends)
    for i, (answer, before) in enumerate(zip(together, alone, strict=True)):
        stops = before.ids.index(ends[i][0]) if i in ending else len(before.ids)
        assert answer.ids == before.ids[:stops]


def test_rows_draw_apart() -> None:
    """The same row twice in a batch gets two texts."""
    one, two = made(Sampling(12, temperature=1.0), [ROWS[0]] * 2, [0, 0])
    assert one.ids != two.ids


@pytest.mark.parametrize("sampling", [Sampling(10, 1.5, top_k=1), Sampling(10, 1.5, top_p=1e-6), Sampling(10, 1e-30)])
def test_nothing_to_choose_from_is_greedy(sampling: Sampling) -> None:
    assert made(sampling) == made(Sampling(10))


def drawn(sampling: Sampling, logits: list[float], times: int = 4000) -> list[float]:
    """How often each token is picked."""
    draw, counts = torch.Generator().manual_seed(0), [0] * len(logits)
    for _ in range(times):
        counts[sample_token(torch.tensor(logits), sampling, draw)] += 1
    return [count / times for count in counts]


LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().tolist()


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        (Sampling(temperature=1.0), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (Sampling(temperature=1.0, top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1.0, top_p=0.69), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1.0, top_p=0.71), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(temperature=1.0, top_k=1, top_p=0.71), [0, 1, 0, 0]),
        (Sampling(temperature=1.0, top_k=99), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0.0, top_p=0.1), [0, 1, 0, 0]),
        (Sampling(temperature=1.0, min_p=0.7), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1.0, min_p=0.4), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(temperature=1.0, top_k=2, min_p=0.4), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1.0, top_p=0.71, min_p=0.7), [0, 4 / 7, 0, 3 / 7]),
    ],
)
def test_the_shares_of_the_tokens(sampling: Sampling, shares: list[float]) -> None:
    got = drawn(sampling, LOGITS)
    assert got == pytest.approx(shares, abs=0.025)
    assert [share == 0 for share in got] == [share == 0 for share in shares]


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """The text as far as a reader would get who checks all stop strings after every character."""
    for n in range(len(text) + 1):
        if found := [text[:n].find(stop) for stop in stops if stop in text[:n]]:
            return text[: min(found)]
    return text


Words = st.text(st.characters(exclude_characters=f"<{CUT}", exclude_categories=["Cs"]), max_size=12)
Stops = st.lists(st.text("ab\u00e9\N{GRINNING FACE}", min_size=1, max_size=4), max_size=3)
Near = st.text("ab\u00e9\N{GRINNING FACE}", max_size=14)  # full of what nearly is a stop string


@given(Words | Near, Stops)
@settings(deadline=None, max_examples=200)
def test_streaming(text: str, stops: list[str]) -> None:
    """The pieces are the text, no half character and nothing of a stop string is ever shown."""
    sampling = Sampling(max_new_tokens=200, stop=tuple(stops))
    answer, pieces = say(spell(text), sampling)
    wanted = cut_at_stops(text, stops)
    assert answer.text == wanted
    assert "".join(pieces) == wanted
    assert all(pieces), "no empty piece"
    assert not any(CUT in piece for piece in pieces)
    assert answer.finish == "stop"


@given(st.lists(st.sampled_from(BYTES), min_size=1, max_size=20), Stops)
@settings(deadline=None, max_examples=200)
def test_streaming_of_any_bytes(tokens: list[int], stops: list[str]) -> None:
    """Also of what is no text: what was shown stays right."""
    answer, pieces = say([*tokens, END], Sampling(max_new_tokens=50, stop=tuple(stops)))
    assert "".join(pieces) == answer.text
    if not any(stop in tiny_lm("llama").tokenizer.decode(tokens) for stop in stops):
        assert answer.text == tiny_lm("llama").tokenizer.decode(tokens)


def test_text_is_shown_as_early_as_it_is_safe() -> None:
    answer, pieces = say(spell("one STOP two"), Sampling(stop=("STOP",)))
    assert pieces == ["o", "n", "e", " "], "three characters late at most"
    assert (answer.text, answer.finish) == ("one ", "stop")
    assert answer.ids == tiny_lm("llama").encode("one STOP"), "the row ends with the stop string"
    assert say(spell("a\u00e9b"), Sampling())[1] == ["a", "\u00e9", "b"]


def test_what_looked_like_a_stop_string_is_shown_in_the_end() -> None:
    answer, pieces = say(spell("one STO"), Sampling(stop=("STOP",)))
    assert answer.text == "".join(pieces) == "one STO"


def test_the_stop_string_that_begins_first_counts() -> None:
    """Both are complete with the same token."""
    answer, _ = say(spell("xabc"), Sampling(stop=("c", "abc")))
    assert answer.text == "x"


@pytest.mark.parametrize("ends", [[END], [END, 9], [9]])
def test_every_end_token_ends(ends: list[int]) -> None:
    answer, pieces = say([70, 71, ends[-1], 72], Sampling(), ends)
    assert (answer.ids, answer.finish) == ([70, 71], "stop")
    assert "".join(pieces) == answer.text == tiny_lm("llama").tokenizer.decode([70, 71])


def test_an_end_at_once_is_an_empty_answer() -> None:
    assert say([END], Sampling()) == (Answer("", [], "stop", end=END), [])


def test_length() -> None:
    answer, pieces = say(spell("abcdef"), Sampling(max_new_tokens=3, stop=("cz",)))
    assert (answer.text, answer.finish, len(answer.ids)) == ("abc", "length", 3)
    assert "".join(pieces) == "abc", "what was held back for a stop string is shown at the end"


def test_control_tokens_are_not_shown() -> None:
    answer, pieces = say([70, SPECIAL.index("<|im_start|>"), 71, END], Sampling())
    assert answer.text == "".join(pieces) == tiny_lm("llama").tokenizer.decode([70, 71])
    assert len(answer.ids) == 3


def test_pieces_carry_the_number_of_their_row() -> None:
    lm, texts = tiny_lm("llama"), dict[int, str]()

    def on_text(row: int, text: str) -> None:
        texts[row] = texts.get(row, "") + text

    answers = decode_batch(
        lm, prefixes(), ROWS, OWNERS, Sampling(12), end_ids=[[END, *range(4, 260, 9)]] * len(ROWS), on_text=on_text
    )
    assert len({len(answer.ids) for answer in answers}) > 1, "they end at different times"
    for row, answer in enumerate(answers):
        assert texts.get(row, "") == answer.text


@pytest.mark.parametrize(
    "wrong",
    [{"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": 100.0}, {"temperature": float("nan")},
     {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 1.1}, {"stop": ("a", "")}],
)  # fmt: skip
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name} is out of range"):
        Sampling(**wrong)


def test_no_room_for_new_tokens() -> None:
    lm: FrozenLM = tiny_lm("llama")
    with pytest.raises(DataError, match="do not fit in the model's context"):
        made(Sampling(max_new_tokens=lm.geometry.max_positions))
