"""What the server does, free of HTTP: models by name, requests to answers, soft prompts in and out."""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import structlog
from anyio.to_thread import run_sync

from softprompt.engine.base import Engine, Job, Token
from softprompt.errors import DataError, EngineError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import router
from softprompt.server.catalogue import Catalogue, CatalogueEntry
from softprompt.server.error_responses import ApiError, from_text, invalid, unknown_model, unknown_prompt
from softprompt.server.limits import Limits
from softprompt.server.metrics import PromptCacheStats, ServerMetrics
from softprompt.server.prompt_cache import CachedPrompt, PromptCache, as_api_error
from softprompt.server.prompt_reader import BaseModelReader, EncodedPrompt, PromptReader, SoftPromptReader, load_reader
from softprompt.server.rate_limit import RateLimit
from softprompt.server.request import GenerationRequest
from softprompt.server.streaming import TextPiece, merge_streams, stream_text

log = structlog.get_logger("softprompt.server")


@dataclass(frozen=True)
class PreparedRequest:
    """An ask that is ready to run.

    Attributes:
        id: of the request, unique.
        jobs: `n` for each text, in the texts' order.
        prompt_tokens: of all texts; virtual tokens do not count.
        fingerprint: of base model and soft prompt: equal ones answer alike.
    """

    id: str
    jobs: tuple[Job, ...]
    stops: tuple[str, ...]
    prompt_tokens: int
    fingerprint: str


class Service:
    """One base model, its soft prompts and an engine.

    Args:
        name: what requests call the base model.
        places: soft prompts in the engine at a time.
        pinned: those that stay there.
        quota: with the limits; by default these are the defaults, and there is no rate.
    """

    def __init__(
        self,
        lm: FrozenLM,
        engine: Engine,
        catalogue: Catalogue,
        *,
        name: str,
        places: int,
        pinned: frozenset[str] = frozenset(),
        quota: RateLimit | None = None,
    ) -> None:
        self.name, self.engine, self.catalogue = name, engine, catalogue
        self.quota = quota or RateLimit(Limits())
        self.limits = self.quota.limits
        self.library = PromptCache(engine, self._read, pinned, places)
        self.metrics = ServerMetrics(engine.stats, self._loads)
        self.started = int(time.time())
        self._lm, self._base, self._fingerprint = lm, BaseModelReader(lm), lm.geometry.fingerprint
        # One at a time: what text a client sends may hold up other texts, but never the event loop or all threads.
        self._texts = anyio.CapacityLimiter(1)

    async def start(self) -> None:
        """Start the engine and load the soft prompts that stay. Raises ProblemError, EngineError."""
        await self.engine.start()
        for name in sorted(self.library.pinned):
            await self.library.load(name)

    async def stop(self) -> None:
        """End what still runs."""
        await self.library.settle()
        await self.engine.stop()

    @property
    def unready(self) -> str:
        """Why no request is taken; "" while all is well."""
        return "the engine has failed" if self.engine.failure else "stopping" if self.quota.draining else ""

    @contextlib.asynccontextmanager
    async def working(self, ask: GenerationRequest) -> AsyncIterator[PreparedRequest]:
        """Hold what an ask needs, its places and its soft prompt, while it is answered. Raises ProblemError."""
        if self.engine.failure:
            raise ApiError(503, "The engine has failed.", "engine_failed", retry_after_s=5)
        prompt = await self._routed(ask, await self._prompt_of(ask.model))
        with self.quota.answers(len(ask.texts) * ask.n):
            if prompt is None:
                yield await self._work(ask, self._base, None, self._fingerprint)
                return
            async with self._held(prompt, ask.model) as held:
                fingerprint = f"{self._fingerprint}-{held.frame.digest[:16]}"
                yield await self._work(ask, held.frame, held.key, fingerprint)

    async def answers(self, work: PreparedRequest, opened: float) -> AsyncGenerator[TextPiece, None]:
        """The pieces of all answers as they come; closing the generator ends the jobs. Raises ProblemError.

        Args:
            begun: `time.monotonic()` when the request came, for the metrics.
        """
        self.metrics.prompt_tokens.inc(work.prompt_tokens)
        streams = [
            stream_text(self.engine, job, i, self._lm.tokenizer, work.stops, _Clock(self.metrics, opened).tick)
            for i, job in enumerate(work.jobs)
        ]
        try:
            async with aclosing(merge_streams(streams)) as pieces:
                async for piece in pieces:
                    self.metrics.generation_tokens.inc(piece.tokens)
                    if piece.finish:
                        self.metrics.success.labels(piece.finish).inc()
                        self.metrics.whole_request.observe(time.monotonic() - opened)
                    yield piece
        except EngineError as error:
            log.error("engine_error", job=work.id, error=error.what)
            if self.engine.failure:
                raise ApiError(503, "The engine has failed.", "engine_failed", retry_after_s=5) from error
            raise ApiError(500, "The engine could not run this request.", "engine_error") from error

    async def load(self, name: str) -> None:
        """Read a soft prompt from disk now; a router is read for each request. Raises ProblemError."""
        if await run_sync(self.catalogue.router, name) is None:
            await self.library.load(name)
        else:
            self.library.reopen(name)

    async def models(self) -> list[CatalogueEntry]:
        """The soft prompts that requests can name."""
        entries = await run_sync(self.catalogue.entries)
        return [entry for entry in entries if not entry.fault and not self.library.is_closed(entry.name)]

    async def entry(self, name: str) -> CatalogueEntry:
        """One soft prompt, also one that cannot be served. Raises ProblemError 404."""
        for entry in await run_sync(self.catalogue.entries):
            if entry.name == name:
                return entry
        raise unknown_prompt(name)

    def model_id(self, entry: CatalogueEntry) -> str:
        """What requests call it: its name, or BASE:NAME where the base model has that name already."""
        return f"{self.name}:{entry.name}" if entry.name == self.name else entry.name

    @contextlib.asynccontextmanager
    async def _held(self, prompt: str, model: str) -> AsyncIterator[CachedPrompt]:
        """`Library.hold` in a request's words: one that was unloaded just now is a model that is not there."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                held = await stack.enter_async_context(self.library.hold(prompt))
            except ApiError as problem:
                if problem.status != 404:
                    raise
                raise unknown_model(model, ()) from None
            yield held

    async def _prompt_of(self, model: str) -> str | None:
        """The soft prompt that a request means; None for the base model alone."""
        if model == self.name:
            return None
        prompt = model.removeprefix(f"{self.name}:")
        there = self.library.users(prompt) is not None or await run_sync(self.catalogue.knows, prompt)
        if there and not self.library.is_closed(prompt):
            return prompt
        raise unknown_model(model, [self.name, *map(self.model_id, await self.models())])

    async def _routed(self, ask: GenerationRequest, prompt: str | None) -> str | None:
        """The soft prompt that a router chooses for the request's text; any other is as given. Raises ProblemError."""
        path = None if prompt is None else await run_sync(self.catalogue.router, prompt)
        if path is None:
            return prompt
        if len(ask.texts) > 1:  # each might need another soft prompt: requests hold one at a time
            raise invalid("A router takes one text a request.", ask.param)
        own = await as_api_error(run_sync(router.load_router, path, self._lm.geometry))
        async with self._held(own.names[0], ask.model) as held:
            (ids,) = await self._read_texts(ask, held.frame)
        return own.names[await run_sync(own.choose, self._lm, ids.ids)]

    async def _read_texts(self, ask: GenerationRequest, reader: PromptReader) -> list[EncodedPrompt]:
        """The request's texts as the model reads them. Raises ProblemError."""
        try:
            return await run_sync(
                lambda: [text(reader) for text in ask.texts], limiter=self._texts, abandon_on_cancel=True
            )
        except DataError as error:
            raise from_text(error, ask.param) from error

    async def _work(
        self, ask: GenerationRequest, reader: PromptReader, prompt: str | None, fingerprint: str
    ) -> PreparedRequest:
        texts = await self._read_texts(ask, reader)
        name, number = uuid.uuid4().hex, itertools.count()
        jobs = tuple(self._job(ask, ids, prompt, name, next(number)) for ids in texts for _ in range(ask.n))
        return PreparedRequest(name, jobs, ask.sampling.stop, sum(ids.text_tokens for ids in texts), fingerprint)

    def _job(self, ask: GenerationRequest, ids: EncodedPrompt, prompt: str | None, name: str, number: int) -> Job:
        context = self.engine.context
        room, most = context - ids.taken, self.limits.prompt_tokens or context
        if ids.taken > most or room < (ask.new_tokens or 1):
            wanted = f"{ids.taken} tokens with the soft prompt and {ask.new_tokens or 1} new ones"
            what = f"The request is too long: {wanted}, in a context of {context} and at most {most} of prompt."
            raise invalid(what, ask.param, "context_length_exceeded")
        length = min(ask.new_tokens or room, self.limits.new_tokens)
        seed = (ask.sampling.seed + number) % 2**63
        sampling = replace(ask.sampling, max_new_tokens=length, seed=seed, stop=())
        facts = (ids.ids, sampling, ids.end_ids, ask.penalties, ask.logprobs, ask.tenant)
        return Job(f"{name}-{number}", prompt, *facts)

    async def _read(self, name: str) -> SoftPromptReader:
        path = await run_sync(self.catalogue.path, name)
        if path is None:
            raise unknown_prompt(name)
        return await run_sync(load_reader, self._lm, path)

    def _loads(self) -> PromptCacheStats:
        library = self.library
        return PromptCacheStats(len(library), library.hits, library.misses, library.evictions)


class _Clock:
    """Measures the time that an answer waits, the time to its first token and between its tokens."""

    def __init__(self, metrics: ServerMetrics, opened: float) -> None:
        self._metrics, self._last, self._first = metrics, opened, True

    def tick(self, token: Token) -> None:
        now = time.monotonic()
        if token.queue_s is not None:
            self._metrics.queue.observe(token.queue_s)
        histogram = self._metrics.first_token if self._first else self._metrics.between_tokens
        histogram.observe(now - self._last)
        self._last, self._first = now, False


def served_name(model: str) -> str:
    """What requests call a base model: its Hub id or built-in name; of a folder or file its last part, no path."""
    path = Path(model).expanduser()
    return path.resolve().stem if path.suffix == ".gguf" else path.resolve().name if path.exists() else model
