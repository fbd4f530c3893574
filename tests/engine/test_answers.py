"""What an engine says is what `generate` says (law 9), whatever else is in the batch."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softprompt.engine import paged_cache
from softprompt.engine.base import Job, Penalties, Token
from softprompt.engine.batching_loop import BatchingLoop, BatchRow
from softprompt.engine.capacity import CPU_BLOCK_TOKENS, Capacity
from softprompt.engine.transformers_engine import TransformersEngine
from softprompt.errors import UnsupportedModelError
from softprompt.inference.sampling import Sampling
from softprompt.prefix.kv import Prefix
from tests.support.cases import mixed_prefixes, random_prompt, text_ids
from tests.support.engines import END, NAMES, generated, ids_of, job, running, said
from tests.support.server_oracle import OracleEngine
from tests.support.tiny import FAMILIES, SEQ2SEQ_FAMILIES, VOCAB, tiny_lm, tiny_seq2seq

CASES = int(os.environ.get("SOFTPROMPT_CASES", "25"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch(family: str) -> None:
    """Twelve rows, every kind of prefix twice, more tokens than a step takes: rows come in one after another."""
    lm = tiny_lm(family)
    rows = [text_ids(1 + 5 * i % 17, i) for i in range(12)]

    async def run() -> list[tuple[list[int], str]]:
        async with running(lm) as engine:
            jobs = [job(str(i), NAMES[i % 6], row, Sampling(20)) for i, row in enumerate(rows)]
            return await asyncio.gather(*(ids_of(engine, one) for one in jobs))

    prefixes = mixed_prefixes(lm)
    for i, answer in enumerate(asyncio.run(run())):
        assert answer == generated(lm, prefixes[i % 6], rows[i], Sampling(20)), f"row {i}"


@pytest.mark.cpu_only("elsewhere the keys of all rows are gathered at once")
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_keys_are_gathered_for_a_few_rows_at_a_time(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve rows of many lengths, three or four at a time; a sliding cache (Gemma 2 has both) is read at once."""
    lm, rows, groups = tiny_lm(family), [text_ids(1 + 5 * i % 37, i) for i in range(12)], list[list[int]]()
    shape = lm.geometry.layers[0]
    assert shape is not None
    monkeypatch.setattr(paged_cache, "CORE_CACHE_BYTES", 4 * 70 * 2 * shape.kv_heads * shape.key_dim * 4)

    def planned(*given: Any) -> paged_cache.AttentionPlan:
        found = paged_cache.plan_attention(*given)
        padded = [part for read in found.reads for part in read.parts if isinstance(part, paged_cache.DecodeRows)]
        if len(found.reads) > 1:
            groups.append([part.queries.stop - part.queries.start for part in padded])
        return found

    async def run() -> list[tuple[list[int], str]]:
        async with running(lm) as engine:
            jobs = [job(str(i), NAMES[i % 6], row, Sampling(20), ends=()) for i, row in enumerate(rows)]
            return await asyncio.gather(*(ids_of(engine, one) for one in jobs))

    with patch("softprompt.engine.batching_loop.plan_attention", planned):
        answers = asyncio.run(run())
    prefixes = mixed_prefixes(lm)
    assert answers == [generated(lm, prefixes[i % 6], row, Sampling(20), ()) for i, row in enumerate(rows)]
    assert max(map(sum, groups)) == 12 and max(map(len, groups)) >= 3, groups
    assert max(max(group, default=0) for group in groups) < 12


@pytest.mark.parametrize("family", SEQ2SEQ_FAMILIES)
def test_encoder_decoders_are_refused_by_name(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"tiny-{family}: .* cannot be batched continuously"):
        asyncio.run(TransformersEngine(tiny_seq2seq(family)).start())


def test_the_model_is_left_alone() -> None:
    lm = tiny_lm("llama")
    before, attention = lm.digest(), lm.hf_model.config._attn_implementation

    async def run() -> None:
        async with running(lm) as engine:
            await said(engine, job("a", "kv"))

    asyncio.run(run())
    assert (lm.digest(), lm.hf_model.config._attn_implementation) == (before, attention)


def test_long_texts_are_read_in_parts() -> None:
    """Virtual tokens that fall into two parts, and rows that decode meanwhile."""
    lm = tiny_lm("llama")
    prefixes = {
        "long": Prefix(random_prompt(lm, "embedding", 40, 1), (3,), (9, 8)),
        "long-kv": Prefix(random_prompt(lm, "kv", 37, 2), (), (9,)),
    }
    texts = {name: text_ids(30, i) for i, name in enumerate(prefixes)}

    async def run() -> list[tuple[list[int], str]]:
        async with running(lm, Capacity(rows=4, batch_tokens=7, cache_tokens=1024), mixed=False) as engine:
            for name, prefix in prefixes.items():
                await engine.load(name, prefix)
            return await asyncio.gather(*(ids_of(engine, job(n, n, texts[n], Sampling(30))) for n in prefixes))

    answers = asyncio.run(run())
    assert answers == [generated(lm, prefixes[name], texts[name], Sampling(30)) for name in prefixes]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_cache_too_small_for_all(family: str) -> None:
    """Rows lose their blocks, wait, and go on as if nothing had been."""
    lm = tiny_lm(family)
    rows = [text_ids(20 + i, i) for i in range(6)]

    async def run() -> list[tuple[list[int], str]]:
        async with running(lm, Capacity(rows=6, batch_tokens=48, cache_tokens=160)) as engine:
            jobs = [job(str(i), NAMES[i % 4], row, Sampling(60, 1.0, seed=i), ends=()) for i, row in enumerate(rows)]
            return await asyncio.gather(*(ids_of(engine, one) for one in jobs))

    prefixes = mixed_prefixes(lm)
    for i, answer in enumerate(asyncio.run(run())):
        assert answer == generated(lm, prefixes[i % 4], rows[i], Sampling(60, 1.0, seed=i), ()), f"row {i}"


@pytest.mark.parametrize("new", [12, 1])
def test_a_prefix_is_computed_once(new: int) -> None:
    """Also for answers of one token, which end with the step that reads the text."""
    lm, sampling = tiny_lm("llama"), Sampling(new)
    prefix = Prefix(random_prompt(lm, "kv", 40, 5), (), (9,))
    rows = [text_ids(6, i) for i in range(4)]

    async def run() -> None:
        async with running(lm, mixed=False) as engine:
            await engine.load("p", prefix)
            assert engine.stats().computed_tokens == 0, "the probe does not count"
            for i, row in enumerate(rows):
                assert await ids_of(engine, job(str(i), "p", row, sampling)) == generated(lm, prefix, row, sampling)
            shared = 41 // CPU_BLOCK_TOKENS * CPU_BLOCK_TOKENS * 3  # whole blocks, in all rows but the first
            assert (engine.stats().cached_tokens, engine.stats().computed_tokens) == (shared, 47 * 4 - shared)

    asyncio.run(run())


@pytest.mark.parametrize("prompt", ["kv", None])
def test_tenants_share_soft_prompts_and_no_texts(prompt: str | None) -> None:
    lm, ids, sampling = tiny_lm("llama"), text_ids(40, 1), Sampling(20)
    prefix = Prefix(random_prompt(lm, "kv", 40, 5), (), (9,))
    wanted = generated(lm, prefix if prompt else Prefix(), ids, sampling)
    found = []

    async def run() -> None:
        async with running(lm, mixed=False) as engine:
            await engine.load("kv", prefix)
            for tenant in ("a", "b", "", "b"):
                before = engine.stats().cached_tokens
                one = replace(job(tenant, prompt, ids, sampling), tenant=tenant)
                tokens = [token async for token in engine.stream(one)]
                assert ([token.id for token in tokens if token.finish != "stop"], tokens[-1].finish) == wanted
                found.append(engine.stats().cached_tokens - before)
                assert [token.cached for token in tokens] == [found[-1]] + [0] * (len(tokens) - 1)

    asyncio.run(run())
    own, all_but_one = (41, 80) if prompt else (0, 39)  # tokens of the soft prompt; the last is always computed
    shared, whole = (n // CPU_BLOCK_TOKENS * CPU_BLOCK_TOKENS for n in (own, all_but_one))
    assert found == [0, shared, shared, whole]


def test_rows_that_share_a_prefix_read_more_than_the_cache_holds() -> None:
    """Six rows of 150 tokens in a cache of 512, all in one step."""
    lm, sampling = tiny_lm("llama"), Sampling(12)
    prefix = Prefix(random_prompt(lm, "kv", 128, 5))
    rows, steps = [text_ids(8, i) for i in range(6)], list[int]()
    whole = BatchingLoop._forward

    def counted(self: BatchingLoop, io: Any, rows: list[BatchRow]) -> Tensor:
        steps.append(len(rows))
        return whole(self, io, rows)

    async def run() -> list[tuple[list[int], str]]:
        async with running(lm, Capacity(rows=8, batch_tokens=160, cache_tokens=512), mixed=False) as engine:
            await engine.load("p", prefix)
            await ids_of(engine, job("warm", "p", rows[0], sampling))
            with patch.object(BatchingLoop, "_forward", counted):
                jobs = [job(str(i), "p", row, sampling, ends=()) for i, row in enumerate(rows)]
                return await asyncio.gather(*(ids_of(engine, one) for one in jobs))

    assert asyncio.run(run()) == [generated(lm, prefix, row, sampling, ()) for row in rows]
    assert max(steps) == 6


LENGTHS = (1, 8, 20, 33)  # virtual tokens, beside those of `mixed_prefixes`
OTHERS = [f"{form} {size}" for form in ("embedding", "kv") for size in LENGTHS]
Samplings = st.builds(
    Sampling,
    max_new_tokens=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 290, 1000]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    seed=st.integers(0, 2**32),
    min_p=st.sampled_from([0.0, 0.0, 0.2, 1.0]),
)
Knobs = st.builds(
    Penalties,
    repetition=st.sampled_from([1.0, 1.0, 0.5, 1.7]),
    presence=st.sampled_from([0.0, 0.0, -2.0, 1.5]),
    frequency=st.sampled_from([0.0, 0.0, 0.7, -1.0]),
)
Jobs = st.builds(
    Job,
    id=st.uuids().map(str),
    prompt=st.sampled_from([*NAMES, *OTHERS, None]),
    ids=st.integers(1, 40).map(lambda length: tuple(text_ids(length, length))),
    sampling=Samplings,
    end_ids=st.sampled_from([frozenset(), frozenset([END])]),
    penalties=Knobs,
    logprobs=st.sampled_from([None, 0, 3]),
    tenant=st.sampled_from(["", "a", "b"]),
    bias=st.dictionaries(st.integers(0, VOCAB - 1) | st.just(END), st.sampled_from([-100.0, -3.0, 4.0, 100.0])).map(
        lambda bias: tuple(bias.items())
    ),
    min_tokens=st.integers(0, 4),
)


def test_any_sampling_in_any_company() -> None:
    """Both forms, any length, every knob: as the plainest engine answers each job alone."""
    lm = tiny_lm("llama")

    async def loaded(engine: TransformersEngine | OracleEngine) -> None:
        for name in OTHERS:
            form, size = name.split()
            await engine.load(name, Prefix(random_prompt(lm, form, int(size), int(size))))

    async def alone() -> OracleEngine:
        oracle = OracleEngine(lm)
        for name, prefix in zip(NAMES, mixed_prefixes(lm), strict=True):
            await oracle.load(name, prefix)
        return oracle

    async def together(engine: TransformersEngine, jobs: Sequence[Job]) -> list[list[Token]]:
        return await asyncio.gather(*(said(engine, one) for one in jobs))

    with asyncio.Runner() as runner:
        context = running(lm)
        engine, oracle = runner.run(context.__aenter__()), runner.run(alone())
        for one in (engine, oracle):
            runner.run(loaded(one))

        @settings(max_examples=CASES, deadline=None, database=None)
        @given(st.lists(Jobs, min_size=1, max_size=8, unique_by=lambda one: one.id))
        def check(jobs: list[Job]) -> None:
            for one, answer in zip(jobs, runner.run(together(engine, jobs)), strict=True):
                with torch.no_grad():
                    wanted = runner.run(said(oracle, one))
                assert [(token.id, token.finish) for token in answer] == [(token.id, token.finish) for token in wanted]
                for ours, theirs in zip(answer, wanted, strict=True):
                    if ours.finish != "stop":  # which the oracle does not score
                        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
                        assert len(ours.likeliest) == (one.logprobs or 0)
            engine.check_integrity()

        try:
            check()
        finally:
            runner.run(context.__aexit__(None, None, None))


def test_logprobs_are_those_of_the_model() -> None:
    lm, ids = tiny_lm("llama"), text_ids(5, 1)

    async def run() -> list[int]:
        async with running(lm) as engine:
            tokens = await said(engine, job("a", None, ids, Sampling(6, 1.5, top_k=4, seed=3), ends=(), logprobs=3))
            text = list(ids)
            for token in tokens:
                with torch.no_grad():
                    wanted = lm.hf_model(torch.tensor([text], device=lm.device)).logits[0, -1].log_softmax(-1)
                assert token.logprob == pytest.approx(wanted[token.id].item(), abs=1e-4), "before temperature and top-k"
                best = wanted.topk(3)
                assert [i for i, _ in token.likeliest] == best.indices.tolist()
                assert [p for _, p in token.likeliest] == pytest.approx(best.values.tolist(), abs=1e-4)
                text.append(token.id)
            return text

    assert len(asyncio.run(run())) == 11


def test_an_end_token_ends() -> None:
    lm, ids = tiny_lm("llama"), text_ids(5, 1)
    free, _ = generated(lm, Prefix(), ids, Sampling(8), ())

    async def run() -> None:
        async with running(lm) as engine:
            tokens = await said(engine, job("a", None, ids, Sampling(8), ends=(END, free[3])))
            place = free.index(free[3])
            assert [token.id for token in tokens] == free[: place + 1]
            assert tokens[-1].finish == "stop"

    asyncio.run(run())
