"""Log-probabilities of given tokens are those of the plain forward pass, whatever else is in the batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from softprompt.engine.base import PromptToken
from softprompt.engine.prompt_scores import score_prompt
from softprompt.inference.sampling import Sampling
from tests.laws.oracle import given_logprobs
from tests.support.cases import mixed_prefixes, text_ids
from tests.support.engines import NAMES, generated, job, running, said
from tests.support.tiny import FAMILIES, tiny_lm


def check(found: Sequence[PromptToken], wanted: Sequence[tuple[int, torch.Tensor | None]], count: int) -> None:
    assert [token.id for token in found] == [token for token, _ in wanted]
    for token, (_, logprobs_V) in zip(found, wanted, strict=True):
        if logprobs_V is None:
            assert token == PromptToken(token.id)
            continue
        assert token.logprob == pytest.approx(float(logprobs_V[token.id]), abs=1e-4)
        surely, perhaps = (int((logprobs_V > logprobs_V[token.id] + slack).sum()) for slack in (1e-4, -1e-4))
        assert surely < token.rank <= perhaps
        assert [value for _, value in token.likeliest] == pytest.approx(
            logprobs_V.topk(count).values.tolist(), abs=1e-4
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_in_a_mixed_batch(family: str) -> None:
    """Every kind of prefix twice, scored and not, the second time with the texts and prefixes already in the cache."""
    lm, prefixes = tiny_lm(family), mixed_prefixes(tiny_lm(family))
    rows = [text_ids(3 + 7 * i % 60, i) for i in range(12)]

    async def run() -> list[list[PromptToken]]:
        async with running(lm) as engine:
            found = []
            for again in range(2):
                jobs = [
                    replace(
                        job(f"{again} {i}", NAMES[i % 6], row, Sampling(8)),
                        prompt_logprobs=None if i % 4 == 3 and not again else 3,
                    )
                    for i, row in enumerate(rows)
                ]
                answers = await asyncio.gather(*(said(engine, one) for one in jobs))
                assert not any(token.prompt for answer in answers for token in answer[1:])
                for i, answer in enumerate(answers):
                    ids = [token.id for token in answer if token.finish != "stop"]
                    assert ids == generated(lm, prefixes[i % 6], rows[i], Sampling(8))[0]
                found = [list(answer[0].prompt) for answer in answers]
            return found

    for i, tokens in enumerate(asyncio.run(run())):
        check(tokens, given_logprobs(lm, prefixes[i % 6], rows[i]), 3)


def test_a_prefix_is_not_computed_again() -> None:
    """Only what is needed of a cached prefix is run again; unscored jobs take all."""
    lm, row = tiny_lm(), text_ids(9, 1)

    async def run() -> list[int]:
        async with running(lm) as engine:
            computed = [engine.stats().computed_tokens]
            for i, wanted in enumerate([None, 0, None]):
                await said(engine, replace(job(str(i), "kv", row, Sampling(1)), prompt_logprobs=wanted))
                computed.append(engine.stats().computed_tokens)
            return [after - before for before, after in pairwise(computed)]

    prefix = mixed_prefixes(lm)[1]
    assert prefix.prompt is not None
    first, scored, last = asyncio.run(run())
    whole = prefix.prompt.n_tokens + len(prefix.follow) + len(row)
    assert first == whole and last < scored < whole


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_without_an_engine(family: str) -> None:
    lm, row = tiny_lm(family), text_ids(14, 2)
    for prefix in mixed_prefixes(lm):
        check(score_prompt(lm, prefix, row, 2), given_logprobs(lm, prefix, row), 2)
