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
from llguidance import LLMatcher, hf
from torch import Tensor

from softprompt.engine.base import EngineStats, Job, Penalties, PromptToken, Token
from softprompt.engine.registry import EngineSpec, NoOptions
from softprompt.errors import EngineError
from softprompt.inference.sampling import sample_token
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.decoding import DecodingSession
from softprompt.prefix.kv import Prefix, PrefixKV
from softprompt.prefix.prepare import prepare_prefixes
from tests.laws.oracle import given_logprobs


class OracleEngine:
    """Runs `slots` jobs at a time, the others wait.

    Attributes:
        pace: seconds to wait before every token, for tests that do something in the middle of an answer.
        broken: jobs fail with this message.
        cached: tokens of each job that are said to come from a cache.
        ends_after: tokens after which an answer ends by itself; 0: where the model ends it.
        failure: as of the interface; tests set it.
        says: every answer, if it is not empty.
        started, seen: whether it is started, and every job it was given.
    """

    def __init__(self, lm: FrozenLM, slots: int = 4) -> None:
        self.failure, self.ends_after = "", 0
        self.lm, self.slots, self.pace, self.broken = lm, slots, 0.0, ""
        self.cached, self.says = 0, ""
        self.started, self.seen, self.running, self.waiting = False, list[Job](), 0, 0
        self.prefix_kvs: dict[str | None, PrefixKV] = {None: prepare_prefixes(lm, [Prefix()])}
        self.prefixes: dict[str | None, Prefix] = {None: Prefix()}
        self._free = asyncio.Semaphore(slots)

    async def start(self) -> None:
        self.started = True

    async def stop(self) -> None:
        self.started = False

    @property
    def context(self) -> int:
        return self.lm.geometry.max_positions

    async def load(self, name: str, prefix: Prefix) -> None:
        self.prefixes[name] = prefix
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
            given = prompt_scores(self.lm, self.prefixes[job.prompt], job)
            yield replace(await anext(tokens), queue_s=queue_s, prompt=given, cached=self.cached)
            async for token in tokens:
                yield token

    def _end(self) -> None:
        self.running -= 1

    async def _decoded(self, job: Job, prefix: PrefixKV) -> AsyncGenerator[Token, None]:
        generator, answer = torch.Generator().manual_seed(job.sampling.seed), list[int]()
        session: DecodingSession | None = None
        state = None if job.constraint is None else matcher(self.lm, job.constraint.lark)
        while True:
            await asyncio.sleep(self.pace)
            if self.says:
                for token in self.lm.encode(self.says):
                    yield Token(token, logprob=-1.0 if job.logprobs is not None else None)
                yield Token(next(iter(job.end_ids)), "stop")
                return
            if self.broken:
                raise EngineError(self.broken, where="/secret/path")
            if session is None:
                session = DecodingSession(self.lm, prefix, [job.ids], [0], job.sampling.max_new_tokens)
            else:
                session.step(torch.tensor([answer[-1]]))
            logits_V = self.lm.logits(session.hidden)[0].float().clone()
            for token, value in job.bias:
                logits_V[token] += value
            logits_V = penalised(logits_V, job.penalties, job.ids, answer)
            allowed_V = logits_V.clone()
            if len(answer) < job.min_tokens:
                allowed_V[list(job.end_ids)] = -torch.inf
            if state is not None:
                allowed_V = constrained(logits_V, state, job, len(answer))
            chosen = sample_token(allowed_V, job.sampling, generator)
            if chosen in job.end_ids or (self.ends_after and len(answer) == self.ends_after):
                yield Token(chosen, "stop")
                return
            answer.append(chosen)
            if state is not None:
                assert state.consume_token(chosen)
            finish = "length" if len(answer) == job.sampling.max_new_tokens else ""
            yield scored(chosen, finish, logits_V, job.logprobs)
            if finish:
                return

    def stats(self) -> EngineStats:
        return EngineStats(self.running, self.waiting, self.running / self.slots, 3, 7)

    def check_integrity(self) -> None:
        assert self.running >= 0 and self.waiting >= 0


ORACLE = EngineSpec("oracle", "One job at a time.", NoOptions, lambda lm, options, base: OracleEngine(lm))


def prompt_scores(lm: FrozenLM, prefix: Prefix, job: Job) -> tuple[PromptToken, ...]:
    """Every given token with its log-probability and the likeliest others, if asked for."""
    tokens = list[PromptToken]()
    for token, logprobs_V in given_logprobs(lm, prefix, job.ids) if job.prompt_logprobs is not None else ():
        if logprobs_V is None or job.prompt_logprobs is None:
            tokens.append(PromptToken(token))
            continue
        top, own = logprobs_V.topk(job.prompt_logprobs), float(logprobs_V[token])
        likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        tokens.append(PromptToken(token, own, int((logprobs_V > own).sum()) + 1, likeliest))
    return tuple(tokens)


def scored(token: int, finish: str, logits_V: Tensor, logprobs: int | None) -> Token:
    """The token with its log-probability and the likeliest others, if asked for."""
    if logprobs is None:
        return Token(token, finish)
    values_V = logits_V.log_softmax(-1)
    top = values_V.topk(logprobs)
    likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Token(token, finish, float(values_V[token]), likeliest)


def matcher(lm: FrozenLM, lark: str) -> LLMatcher:
    """llguidance's own, made anew."""
    tokenizer = hf.from_tokenizer(lm.tokenizer, n_vocab=lm.geometry.vocab)  # type: ignore[arg-type]
    return LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)


def constrained(logits_V: Tensor, state: LLMatcher, job: Job, length: int) -> Tensor:
    """The logits of each token that the matcher would take, tried one by one, and of the end where it may end."""
    allowed_V = torch.full_like(logits_V, -torch.inf)
    tried = [] if state.is_stopped() else range(len(logits_V))
    going = [token for token in tried if token not in job.end_ids and state.validate_tokens([token]) == 1]
    allowed_V[going] = logits_V[going]
    if state.is_accepting() and (not going or length >= job.min_tokens):
        allowed_V[list(job.end_ids)] = logits_V[list(job.end_ids)]
    return allowed_V


def penalised(logits_V: Tensor, penalties: Penalties, text: tuple[int, ...], answer: list[int]) -> Tensor:
    """The logits after the penalties."""
    logits_V = logits_V.clone()
    for token in {*text, *answer} if penalties.repetition != 1 else ():
        value = logits_V[token]
        logits_V[token] = value / penalties.repetition if value > 0 else value * penalties.repetition
    for token, count in Counter(answer).items():
        logits_V[token] -= penalties.presence + penalties.frequency * count
    return logits_V
