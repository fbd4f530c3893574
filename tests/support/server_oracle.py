"""An engine that is as plain as can be: each job decodes alone, by the library's own session and `pick`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import torch
from torch import Tensor

from softprompt.engine.base import EngineStats, Job, Penalties, Token
from softprompt.engine.registry import EngineSpec, NoOptions
from softprompt.errors import EngineError
from softprompt.inference.sampling import sample_token
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.decoding import DecodingSession
from softprompt.prefix.kv import Prefix, PrefixKV
from softprompt.prefix.prepare import prepare_prefixes


class OracleEngine:
    """Runs `slots` jobs at a time, the others wait.

    Attributes:
        pace: seconds to wait before every token, for tests that do something in the middle of an answer.
        broken: jobs fail with this message.
        failure: as of the interface; tests set it.
        started, seen: whether it is started, and every job it was given.
    """

    def __init__(self, lm: FrozenLM, slots: int = 4) -> None:
        self.failure = ""
        self.lm, self.slots, self.pace, self.broken = lm, slots, 0.0, ""
        self.started, self.seen, self.running, self.waiting = False, list[Job](), 0, 0
        self.prefix_kvs: dict[str | None, PrefixKV] = {None: prepare_prefixes(lm, [Prefix()])}
        self._free = asyncio.Semaphore(slots)

    async def start(self) -> None:
        self.started = True

    async def stop(self) -> None:
        self.started = False

    @property
    def context(self) -> int:
        return self.lm.geometry.max_positions

    async def load(self, name: str, prefix: Prefix) -> None:
        with torch.no_grad():
            self.prefix_kvs[name] = await asyncio.to_thread(prepare_prefixes, self.lm, [prefix])

    async def unload(self, name: str) -> None:
        del self.prefix_kvs[name]

    def loaded(self) -> tuple[str, ...]:
        return tuple(name for name in self.prefix_kvs if name is not None)

    async def stream(self, job: Job) -> AsyncGenerator[Token, None]:
        self.seen.append(job)
        if job.prompt not in self.prefix_kvs:
            raise EngineError("not loaded", got=job.prompt)
        self.waiting, came = self.waiting + 1, time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._free)
            finally:
                self.waiting -= 1
            self.running, queue_s = self.running + 1, time.monotonic() - came
            stack.callback(self._end)
            tokens = await stack.enter_async_context(aclosing(self._decoded(job, self.prefix_kvs[job.prompt])))
            yield replace(await anext(tokens), queue_s=queue_s)
            async for token in tokens:
                yield token

    def _end(self) -> None:
        self.running -= 1

    async def _decoded(self, job: Job, prefix: PrefixKV) -> AsyncGenerator[Token, None]:
        generator, answer = torch.Generator().manual_seed(job.sampling.seed), list[int]()
        session: DecodingSession | None = None
        while True:
            await asyncio.sleep(self.pace)
            if self.broken:
                raise EngineError(self.broken, where="/secret/path")
            if session is None:
                session = DecodingSession(self.lm, prefix, [job.ids], [0], job.sampling.max_new_tokens)
            else:
                session.step(torch.tensor([answer[-1]]))
            logits_V = penalised(self.lm.logits(session.hidden)[0].float(), job.penalties, job.ids, answer)
            chosen = sample_token(logits_V, job.sampling, generator)
            if chosen in job.end_ids:
                yield Token(chosen, "stop")
                return
            answer.append(chosen)
            finish = "length" if len(answer) == job.sampling.max_new_tokens else ""
            yield scored(chosen, finish, logits_V, job.logprobs)
            if finish:
                return

    def stats(self) -> EngineStats:
        return EngineStats(self.running, self.waiting, self.running / self.slots, 3, 7)

    def check_integrity(self) -> None:
        assert self.running >= 0 and self.waiting >= 0


ORACLE = EngineSpec("oracle", "One job at a time.", NoOptions, lambda lm, options, base: OracleEngine(lm))


def scored(token: int, finish: str, logits_V: Tensor, logprobs: int | None) -> Token:
    """The token with its log-probability and the likeliest others, if asked for."""
    if logprobs is None:
        return Token(token, finish)
    values_V = logits_V.log_softmax(-1)
    top = values_V.topk(logprobs)
    likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Token(token, finish, float(values_V[token]), likeliest)


def penalised(logits_V: Tensor, penalties: Penalties, text: tuple[int, ...], answer: list[int]) -> Tensor:
    """The logits after the penalties."""
    logits_V = logits_V.clone()
    for token in {*text, *answer} if penalties.repetition != 1 else ():
        value = logits_V[token]
        logits_V[token] = value / penalties.repetition if value > 0 else value * penalties.repetition
    for token, count in Counter(answer).items():
        logits_V[token] -= penalties.presence + penalties.frequency * count
    return logits_V
