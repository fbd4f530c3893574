"""A running engine on a tiny model, its answers, and what `generate` says to the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import torch

from softprompt.engine.base import Engine, Job, Penalties, Token
from softprompt.engine.capacity import Capacity
from softprompt.engine.transformers_engine import TransformersEngine
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from tests.support.cases import mixed_prefixes, text_ids
from tests.support.tiny import SPECIAL

END = SPECIAL.index("<|im_end|>")
SMALL = Capacity(rows=16, batch_tokens=48, cache_tokens=2048)
NAMES = ("both", "kv", "bare-kv", "embedding", "text", "nothing")  # of mixed_prefixes


@asynccontextmanager
async def running(lm: FrozenLM, capacity: Capacity = SMALL, *, mixed: bool = True) -> AsyncIterator[TransformersEngine]:
    """An engine with `mixed_prefixes`, checked and stopped in the end."""
    engine = TransformersEngine(lm, capacity)
    await engine.start()
    try:
        for name, prefix in zip(NAMES, mixed_prefixes(lm) if mixed else (), strict=mixed):
            await engine.load(name, prefix)
        yield engine
        await settled(engine)
        engine.check_integrity()
    finally:
        await engine.stop()


def job(
    name: str,
    prompt: str | None = None,
    ids: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    *,
    ends: Sequence[int] = (END,),
    penalties: Penalties | None = None,
    logprobs: int | None = None,
) -> Job:
    """A job with what does not matter filled in."""
    ids = text_ids(5, 7) if ids is None else ids
    sampling, penalties = sampling or Sampling(12), penalties or Penalties()
    return Job(name, prompt, tuple(ids), sampling, frozenset(ends), penalties, logprobs)


async def said(engine: Engine, one: Job) -> list[Token]:
    """All tokens of a job."""
    async with aclosing(engine.stream(one)) as tokens:
        return [token async for token in tokens]


async def ids_of(engine: TransformersEngine, one: Job) -> tuple[list[int], str]:
    """The answer's ids and how it ended."""
    tokens = await said(engine, one)
    assert all(not token.finish for token in tokens[:-1]), "only the last token has a finish"
    return [token.id for token in tokens if token.finish != "stop"], tokens[-1].finish


async def settled(engine: TransformersEngine) -> None:
    """Nothing runs any more."""
    for _ in range(500):
        stats = engine.stats()
        if not (stats.running or stats.waiting or engine._rows):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"rows are left: {sorted(engine._rows)}, {engine.stats()}")


@torch.no_grad()
def generated(
    lm: FrozenLM, prefix: Prefix, ids: Sequence[int], sampling: Sampling, ends: Sequence[int] = (END,)
) -> tuple[list[int], str]:
    """What `generate` answers to one row alone."""
    (answer,) = decode_batch(lm, prepare_prefixes(lm, [prefix]), [list(ids)], [0], sampling, end_ids=[list(ends)])
    return answer.ids, answer.finish
