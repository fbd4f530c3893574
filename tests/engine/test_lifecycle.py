"""Soft prompts and jobs that come and go while others run."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch

from softprompt.engine.base import Job, Token
from softprompt.engine.capacity import Capacity
from softprompt.engine.transformers_engine import TransformersEngine
from softprompt.errors import ConfigError, EngineError
from softprompt.inference.sampling import Sampling
from softprompt.prefix.kv import Prefix
from softprompt.prompts.forms import EmbeddingPrompt
from tests.support.cases import mixed_prefixes, random_prompt, text_ids
from tests.support.engines import NAMES, generated, ids_of, job, running, said, settled
from tests.support.tiny import VOCAB, tiny_lm

LONG = Sampling(150)


def prefix(form: str, seed: int, n_tokens: int = 20) -> Prefix:
    return Prefix(random_prompt(tiny_lm("llama"), form, n_tokens, seed))


async def first(engine: TransformersEngine, one: Job) -> tuple[Token, asyncio.Task[list[Token]]]:
    """The first token, and the others to come."""
    opened: asyncio.Future[Token] = asyncio.get_running_loop().create_future()

    async def go() -> list[Token]:
        tokens = []
        async with aclosing(engine.stream(one)) as stream:  # type: ignore[type-var]
            async for token in stream:
                tokens.append(token)
                if not opened.done():
                    opened.set_result(token)
        return tokens

    task = asyncio.create_task(go())
    return await opened, task


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_a_replaced_prompt_stays_with_the_jobs_that_run(form: str) -> None:
    lm, old, new, ids = tiny_lm("llama"), prefix(form, 1), prefix(form, 2), text_ids(6, 1)
    wanted = [generated(lm, one, ids, LONG, ())[0] for one in (old, new)]
    assert wanted[0] != wanted[1]

    async def run() -> None:
        async with running(lm, mixed=False) as engine:
            await engine.load("p", old)
            _, opened = await first(engine, job("old", "p", ids, LONG, ends=()))
            await engine.load("p", new)
            assert engine.loaded() == ("p",)
            engine.check_integrity()
            answer, _ = await ids_of(engine, job("new", "p", ids, LONG, ends=()))
            assert answer == wanted[1], "no cached block of the old one is used"
            assert [token.id for token in await opened] == wanted[0]

    asyncio.run(run())


def test_an_unloaded_prompt_is_freed_with_its_last_job() -> None:
    lm, ids = tiny_lm("llama"), text_ids(6, 1)

    async def run() -> None:
        async with running(lm, mixed=False) as engine:
            await engine.load("p", prefix("kv", 1))
            _, opened = await first(engine, job("a", "p", ids, LONG, ends=()))
            held = engine._rows["a"].loaded
            await engine.unload("p")
            assert engine.loaded() == ()
            assert held.layers, "the job needs it"
            with pytest.raises(EngineError, match="no such soft prompt is loaded"):
                await said(engine, job("b", "p", ids))
            assert [token.id for token in await opened] == generated(lm, prefix("kv", 1), ids, LONG, ())[0]
            await settled(engine)
            assert not held.layers

    asyncio.run(run())


def test_many_loads_and_jobs_at_once() -> None:
    lm = tiny_lm("llama")

    async def use(engine: TransformersEngine, i: int) -> None:
        form, ids = ("embedding", "kv")[i % 2], text_ids(4, i)
        for again in range(3):
            own = prefix(form, 10 * i + again, 3 + 7 * again)
            await engine.load(f"p{i}", own)
            sampling = Sampling(10, 1.0, seed=again)
            answer = await ids_of(engine, job(f"{i}.{again}", f"p{i}", ids, sampling))
            assert answer == generated(lm, own, ids, sampling)
            engine.check_integrity()
        await engine.unload(f"p{i}")

    async def run() -> None:
        async with running(lm, mixed=False) as engine:
            await asyncio.gather(*(use(engine, i) for i in range(8)))
            assert engine.loaded() == ()

    asyncio.run(run())


def test_leaving_cancels_and_frees() -> None:
    """After each token one of eight jobs is left; the one that stays is as it would be alone."""
    lm, ids = tiny_lm("llama"), text_ids(6, 1)

    async def run() -> None:
        async with running(lm) as engine:
            tasks = [(await first(engine, job(str(i), NAMES[i % 6], ids, LONG, ends=())))[1] for i in range(8)]
            assert engine.stats().running == 8
            assert engine.stats().kv_usage > 0
            for task in tasks[1:]:
                task.cancel()
                engine.check_integrity()
            assert [token.id for token in await tasks[0]] == generated(lm, mixed_prefixes(lm)[0], ids, LONG, ())[0]
            await settled(engine)
            assert engine.stats().kv_usage == pytest.approx(0)

    asyncio.run(run())


def test_cancelled_before_it_began() -> None:
    """Also one that waits, and one whose cancellation comes with it; the id is free again."""
    lm = tiny_lm("llama")

    async def run() -> None:
        async with running(lm, Capacity(rows=1, batch_tokens=16, cache_tokens=1024), mixed=False) as engine:
            _, opened = await first(engine, job("a", sampling=LONG, ends=()))
            waiting = asyncio.create_task(said(engine, job("b")))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            opened.cancel()
            await settled(engine)
            assert await ids_of(engine, job("b")) == generated(lm, Prefix(), text_ids(5, 7), Sampling(12))

    asyncio.run(run())


def test_the_others_come_in_after_a_row_that_was_put_back_is_cancelled() -> None:
    """The manager lets nobody in between putting a row back and the end of another."""
    lm = tiny_lm("llama")

    async def run() -> None:
        async with running(lm, Capacity(rows=4, batch_tokens=32, cache_tokens=128), mixed=False) as engine:
            jobs = [job(str(i), None, text_ids(30, i), Sampling(80), ends=()) for i in range(3)]
            tasks = [asyncio.create_task(said(engine, one)) for one in jobs]
            for _ in range(2000):
                await asyncio.sleep(0.001)
                assert engine._loop is not None and engine._loop.batch_processor is not None
                if engine._loop.batch_processor.scheduler.block_new_requests:
                    break
            else:
                raise AssertionError("no row was put back")
            for task in tasks:
                task.cancel()
            await asyncio.wait_for(said(engine, job("after")), 5)

    asyncio.run(run())


def test_the_first_token_says_how_long_the_job_waited() -> None:
    async def run() -> None:
        alone = Capacity(rows=1, batch_tokens=16, cache_tokens=1024)
        async with running(tiny_lm("llama"), alone, mixed=False) as engine:
            opened = time.monotonic()
            tokens, later = await asyncio.gather(said(engine, job("a", sampling=LONG)), said(engine, job("b")))
            whole = time.monotonic() - opened
            assert tokens[0].queue_s is not None and later[0].queue_s is not None
            assert 0 <= tokens[0].queue_s < whole / 2 < later[0].queue_s < whole
            assert all(token.queue_s is None for token in (*tokens[1:], *later[1:]))

    asyncio.run(run())


def test_stopping_ends_the_jobs() -> None:
    lm = tiny_lm("llama")

    async def run() -> None:
        engine = TransformersEngine(lm, Capacity(rows=2, batch_tokens=16, cache_tokens=1024))
        assert engine.failure == "the engine is not started"
        with pytest.raises(EngineError, match="not started"):
            await said(engine, job("a"))
        await engine.start()
        assert engine.failure == ""
        _, opened = await first(engine, job("a", sampling=LONG, ends=()))
        waiting = asyncio.create_task(said(engine, job("b", sampling=LONG, ends=())))
        also = asyncio.create_task(said(engine, job("c", sampling=LONG, ends=())))
        await asyncio.sleep(0.01)
        await engine.stop()
        for task in (opened, waiting, also):
            with pytest.raises(EngineError, match="the engine was stopped"):
                await task
        assert engine.failure == "the engine was stopped"
        with pytest.raises(EngineError, match="the engine was stopped"):
            await said(engine, job("d"))
        with pytest.raises(EngineError, match="the engine was stopped"):
            await engine.load("p", prefix("kv", 1))
        engine.check_integrity()
        await engine.stop()
        with pytest.raises(EngineError, match="started before"):
            await engine.start()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ids": ()}, "a job has no tokens"),
        ({"ids": (5, VOCAB)}, "an id is no token of the model"),
        ({"ids": (-1,)}, "an id is no token of the model"),
        ({"ids": (5,) * 220}, "does not fit in the context"),
        ({"sampling": Sampling(240)}, "does not fit in the context"),
        ({"ids": (5,) * 100, "sampling": Sampling(100)}, "does not fit in the cache"),
        ({"prompt": "other"}, "no such soft prompt is loaded"),
        ({"sampling": Sampling(seed=-1)}, "the seed is out of range"),
    ],
)
def test_jobs_that_are_refused(wrong: dict[str, object], message: str) -> None:
    lm = tiny_lm("llama")

    async def run() -> None:
        async with running(lm, Capacity(rows=2, batch_tokens=32, cache_tokens=160), mixed=False) as engine:
            await engine.load("p", prefix("kv", 1, 32))
            with pytest.raises(EngineError, match=message):
                await said(engine, replace(job("a", "p"), **wrong))
            assert await said(engine, job("a", "p")), "nothing is left of it"

    asyncio.run(run())


def test_two_jobs_of_one_id() -> None:
    async def run() -> None:
        async with running(tiny_lm("llama"), mixed=False) as engine:
            _, opened = await first(engine, job("a", sampling=LONG, ends=()))
            with pytest.raises(EngineError, match="a job with this id is running already"):
                await said(engine, job("a"))
            assert len(await opened) == 150

    asyncio.run(run())


NAN = torch.full((4, 32), float("nan"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Prefix(EmbeddingPrompt(torch.zeros(4, 31))), "does not fit the model: tensor embeddings has the wrong shape"),
        (Prefix(EmbeddingPrompt(NAN)), "holds NaN or infinite values"),
        (prefix("embedding", 1, 255), "does not fit in the context"),
        (Prefix(prefix("kv", 1).prompt, lead=(3,)), "no lead can stand before it"),
        (Prefix(prefix("kv", 1).prompt, follow=(VOCAB,)), "an id is no token of the model"),
        (Prefix(prefix("kv", 1).prompt, masked_span=(1, 2)), "cannot mask virtual tokens"),
    ],
)
def test_prompts_that_are_refused(wrong: Prefix, message: str) -> None:
    async def run() -> None:
        async with running(tiny_lm("llama"), mixed=False) as engine:
            with pytest.raises(EngineError, match=message):
                await engine.load("p", wrong)
            assert engine.loaded() == ()

    asyncio.run(run())


def test_unloading_what_is_not_there() -> None:
    async def run() -> None:
        async with running(tiny_lm("llama"), mixed=False) as engine:
            with pytest.raises(EngineError, match="no such soft prompt is loaded"):
                await engine.unload("p")

    asyncio.run(run())


def test_a_capacity_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError, match="rows is out of range"):
        Capacity(rows=0)
