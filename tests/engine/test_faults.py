"""What goes wrong with one job is that job's failure; what goes wrong with the model is noticed."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from softprompt.engine import batching_loop, paged_cache
from softprompt.engine.batching_loop import BatchingLoop
from softprompt.engine.sampler import Sampler
from softprompt.engine.transformers_engine import TransformersEngine
from softprompt.errors import EngineError, UnsupportedModelError
from softprompt.inference.sampling import Sampling
from softprompt.prefix.kv import Prefix
from softprompt.prompts.forms import KVPrompt
from tests.support.cases import mixed_prefixes, text_ids
from tests.support.engines import NAMES, SMALL, generated, ids_of, job, running, said
from tests.support.tiny import tiny_lm

LONG = Sampling(40)


async def outcomes(engine: TransformersEngine, count: int) -> list[Any]:
    """Of this many jobs with the mixed prefixes."""
    jobs = [job(str(i), NAMES[i % 6], text_ids(6, i), LONG, ends=()) for i in range(count)]
    return await asyncio.gather(*(ids_of(engine, one) for one in jobs), return_exceptions=True)


def check(found: list[Any], failed: set[int], message: str) -> None:
    """These failed, and the others are as they would be alone."""
    lm = tiny_lm("llama")
    for i, outcome in enumerate(found):
        if i in failed:
            assert isinstance(outcome, EngineError) and message in str(outcome)
        else:
            assert outcome == generated(lm, mixed_prefixes(lm)[i % 6], text_ids(6, i), LONG, ())


def test_sampling_fails() -> None:
    calls = 0

    def broken(self: Sampler, logits_V: Tensor, best: int) -> Any:
        nonlocal calls
        if self._job.id == "3":
            calls += 1
            if calls == 5:
                raise ZeroDivisionError("five")
        return whole(self, logits_V, best)

    whole = Sampler.next

    async def run() -> None:
        async with running(tiny_lm("llama")) as engine:
            with patch.object(Sampler, "next", broken):
                check(await outcomes(engine, 6), {3}, "ZeroDivisionError: five")
            engine.check_integrity()
            check(await outcomes(engine, 6), set(), "")

    asyncio.run(run())
    assert calls == 5


def test_a_prompt_that_makes_no_numbers() -> None:
    """Its own jobs fail, those of others do not see it: NaN times a weight of zero would be NaN."""
    keys, values = torch.full((2, 3, 8), 3e38), torch.full((2, 3, 8), 3e38)
    huge = Prefix(KVPrompt(((keys, values), (keys, values))))

    async def run() -> None:
        async with running(tiny_lm("llama")) as engine:
            await engine.load("huge", huge)
            bad = asyncio.gather(
                *(
                    said(engine, job(f"bad {t}", "huge", sampling=Sampling(9, t), logprobs=n))
                    for t, n in ((0.0, None), (1.0, 2))
                ),
                return_exceptions=True,
            )
            check(await outcomes(engine, 6), set(), "")
            assert all("the model's logits are not finite" in str(error) for error in await bad)

    asyncio.run(run())


def test_a_step_fails() -> None:
    """Its jobs fail, those that wait come in, and nothing of the step stays in the cache."""
    whole, calls = BatchingLoop._forward, 0

    def broken(self: BatchingLoop, io: Any, rows: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:  # nothing was written where the cache's books say that something is
            raise RuntimeError("can't allocate memory")
        return whole(self, io, rows)

    async def run() -> None:
        async with running(tiny_lm("llama")) as engine:
            with patch.object(BatchingLoop, "_forward", broken):
                found = await outcomes(engine, 12)
            failed = {i for i, outcome in enumerate(found) if isinstance(outcome, EngineError)}
            assert 0 < len(failed) < 12
            check(found, failed, "can't allocate memory")
            assert engine.failure == ""
            engine.check_integrity()
            check(await outcomes(engine, 12), set(), "")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "steps"), [(RuntimeError("no"), batching_loop.FAILED_STEPS), (torch.AcceleratorError("no"), 1)]
)
def test_all_steps_fail(error: Exception, steps: int, capfd: pytest.CaptureFixture[str]) -> None:
    calls = 0

    def broken(*_: Any) -> Tensor:
        nonlocal calls
        calls += 1
        raise error

    async def run() -> None:
        engine = TransformersEngine(tiny_lm("llama"), SMALL)
        await engine.start()
        try:
            with patch.object(BatchingLoop, "_forward", broken):
                for i in range(steps):
                    assert engine.failure == ""
                    with pytest.raises(EngineError):
                        await said(engine, job(str(i)))
            assert engine.failure == "the engine failed: no"
            with pytest.raises(EngineError, match="the engine failed: no"):
                await said(engine, job("after"))
            engine._vocabulary.check_integrity([])
        finally:
            await engine.stop()

    asyncio.run(run())
    assert calls == steps
    capfd.readouterr()  # the manager writes a traceback


def test_a_model_that_is_not_exact_is_refused() -> None:
    """The probe compares numbers: attention that is a little off does not pass."""
    whole = paged_cache.attention

    def off(*arguments: Any) -> Tensor:
        return whole(*arguments) * 1.01

    async def run() -> None:
        engine = TransformersEngine(tiny_lm("llama"), SMALL)
        with patch.object(paged_cache, "attention", off), pytest.raises(UnsupportedModelError, match="are off by"):
            await engine.start()
        assert engine.failure == "the engine was stopped"

    asyncio.run(run())


def test_a_model_whose_attention_cannot_be_replaced_is_refused() -> None:
    async def run() -> None:
        engine = TransformersEngine(tiny_lm("llama"), SMALL)
        broken = patch.object(paged_cache.AttentionStep, "attend", side_effect=TypeError("no cache"))
        with broken, pytest.raises(UnsupportedModelError, match="TypeError: no cache"):
            await engine.start()

    asyncio.run(run())
