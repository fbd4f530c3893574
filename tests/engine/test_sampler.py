"""Penalties, log-probabilities and ends of one job's answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from softprompt.engine.base import Penalties, Token
from softprompt.engine.sampler import Sampler
from softprompt.errors import EngineError
from softprompt.inference.sampling import Sampling
from tests.support.engines import job

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0])
GREEDY = job("a", None, (1,), Sampling(4), ends=(2,))


def tokens(penalties: Penalties, logits: torch.Tensor = LOGITS, count: int = 4) -> list[int]:
    """Greedy tokens of the text [1] when the model says the same all the time."""
    sampler = Sampler(replace(GREEDY, penalties=penalties, end_ids=frozenset()))
    return [sampler.next(logits, int(logits.argmax())).id for _ in range(count)]


@pytest.mark.parametrize(
    ("penalties", "wanted"),
    [
        (Penalties(), [1, 1, 1, 1]),
        (Penalties(repetition=2.0), [2, 1, 1, 1]),  # 3/2 < 2, then 2/2 < 3/2
        (Penalties(repetition=10.0), [2, 0, 1, 1]),  # 0.3, 0.2, 0.1
        (Penalties(presence=1.5), [1, 2, 1, 1]),  # the text does not count: 3, then 1.5 < 2, then 0.5 < 1.5
        (Penalties(frequency=0.75), [1, 1, 2, 1]),  # 3, 2.25, 1.5 < 2, then 2 - 0.75 < 1.5
        (Penalties(presence=0.5, frequency=0.75), [1, 2, 1, 0]),  # 3, 1.75 < 2, then 0.75 < 1.75, then 0.5 < 1
    ],
)
def test_penalties(penalties: Penalties, wanted: list[int]) -> None:
    assert tokens(penalties) == wanted


def test_a_repeated_token_of_negative_logit_becomes_less_likely() -> None:
    assert tokens(Penalties(repetition=3.0), torch.tensor([-4.0, -2.0, -5.0, -9.0]), 3) == [0, 2, 1]


def test_the_logits_are_left_alone() -> None:
    before = LOGITS.clone()
    tokens(Penalties(repetition=2.0, presence=1.0, frequency=1.0))
    assert torch.equal(LOGITS, before)


def test_logprobs_come_behind_penalties_and_before_temperature() -> None:
    sampling = Sampling(4, 0.5, top_k=1)
    sampler = Sampler(replace(GREEDY, sampling=sampling, penalties=Penalties(repetition=3.0), logprobs=2))
    token = sampler.next(LOGITS, 1)
    wanted = torch.tensor([1.0, 1.0, 2.0, -1.0]).log_softmax(-1)
    assert token.id == 2
    assert token.logprob == pytest.approx(wanted[2].item())
    assert token.likeliest[0] == (2, pytest.approx(wanted[2].item()))
    assert [p for _, p in token.likeliest] == pytest.approx([wanted[2].item(), wanted[0].item()])
    assert len(Sampler(replace(GREEDY, logprobs=99)).next(LOGITS, 1).likeliest) == 4
    assert Sampler(replace(GREEDY, logprobs=0)).next(LOGITS, 1).likeliest == ()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ends(temperature: float) -> None:
    def said(job_ends: tuple[int, ...], top_k: int = 1) -> list[Token]:
        sampling = Sampling(3, temperature, top_k=top_k)
        sampler = Sampler(replace(GREEDY, sampling=sampling, end_ids=frozenset(job_ends)))
        return [sampler.next(LOGITS, 1) for _ in range(3)]

    assert [token.finish for token in said(())] == ["", "", "length"]
    assert said((1,))[0].finish == "stop"


def test_what_is_no_number_is_an_error() -> None:
    for odd in (float("nan"), float("inf")):
        logits = torch.tensor([0.0, odd, 1.0])
        with pytest.raises(EngineError, match="not finite"):
            Sampler(GREEDY).next(logits, 1)


def test_only_plain_greedy_needs_no_more_than_the_likeliest() -> None:
    assert Sampler(GREEDY).plain
    others = [
        replace(GREEDY, sampling=Sampling(4, 1.0)),
        replace(GREEDY, logprobs=0),
        replace(GREEDY, penalties=Penalties(presence=0.1)),
        replace(GREEDY, bias=((1, 0.1),)),
        replace(GREEDY, min_tokens=1),
    ]
    assert not any(Sampler(other).plain for other in others)


def test_bias_comes_before_penalties_and_an_answer_has_its_least_length() -> None:
    """Log-probabilities are those with bias, and do not know what may not end yet."""
    biased = Sampler(replace(GREEDY, bias=((0, 4.0), (3, -100.0)), penalties=Penalties(repetition=4.0), logprobs=1))
    token = biased.next(LOGITS, 1)  # 1 + 4 against 3, of which the text's token 1 keeps a quarter
    assert (token.id, token.logprob) == (0, pytest.approx(torch.tensor([5, 0.75, 2, -101]).log_softmax(-1)[0].item()))
    ending = Sampler(replace(GREEDY, end_ids=frozenset((1,)), min_tokens=2, logprobs=1))
    said = [ending.next(LOGITS, 1) for _ in range(3)]
    assert [(token.id, token.finish) for token in said] == [(2, ""), (2, ""), (1, "stop")]
    assert said[0].likeliest[0][0] == 1
