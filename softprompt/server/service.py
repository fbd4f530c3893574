"""The service behind the HTTP routes: finds models by name, turns requests into answers, loads and unloads prompts.

A request passes four steps. Its model's name becomes a soft prompt, by way of a router if it names one. The prompt is
held in the cache until the answers are complete. Its texts become token ids, and each of its answers a job. The engine
runs the jobs, whose tokens come back as one stream of text pieces. HTTP, keys and JSON belong to the routes.
"""

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
from softprompt.errors import DataError, EngineError, StoreError, UnreachableError
from softprompt.formatting.chat_template import ChatTemplateOf
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import router, store
from softprompt.prompts.model_card import public_name
from softprompt.server.catalogue import Catalogue, CatalogueEntry
from softprompt.server.error_responses import ApiError, from_text, invalid, store_failed, unknown_model, unknown_prompt
from softprompt.server.limits import Limits
from softprompt.server.metrics import PromptCacheStats, ServerMetrics
from softprompt.server.prompt_cache import CachedPrompt, PromptCache, as_api_error
from softprompt.server.prompt_reader import BaseModelReader, EncodedPrompt, PromptReader, SoftPromptReader, load_reader
from softprompt.server.rate_limit import RateLimit
from softprompt.server.request import GenerationRequest
from softprompt.server.streaming import TextPiece, merge_streams, stream_text

log = structlog.get_logger("softprompt.server")
_FAR_AWAY_AT_ONCE = 8  # calls to a store far away


@dataclass(frozen=True)
class PreparedRequest:
    """A request as jobs that are ready to run.

    Attributes:
        id: unique id of the request.
        jobs: `n` for each text, in the order of the texts.
        stops: stop strings.
        prompt_tokens: tokens of all texts, without virtual tokens.
        fingerprint: identifies the weights of base model and soft prompt, as OpenAI's `system_fingerprint`.
    """

    id: str
    jobs: tuple[Job, ...]
    stops: tuple[str, ...]
    prompt_tokens: int
    fingerprint: str


class Service:
    """One base model, its soft prompts and an engine.

    Args:
        lm: encodes texts and routes; the engine runs the model.
        catalogue: the soft prompts on disk.
        name: name of the base model in requests.
        places: maximum number of soft prompts in the engine.
        pinned: soft prompts loaded at the start and never evicted.
        rate_limit: limits of requests; by default the default limits without a rate.
        chat_template: whose to use if the model has another one than a soft prompt was trained with; "": refuse it.
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
        rate_limit: RateLimit | None = None,
        chat_template: ChatTemplateOf = "",
    ) -> None:
        self.name, self.engine = name, engine
        self.catalogue = catalogue
        self.rate_limit = rate_limit or RateLimit(Limits())
        self.limits = self.rate_limit.limits
        self.prompt_cache = PromptCache(engine, self._read, pinned, places, self._bring)
        self.metrics = ServerMetrics(engine.stats, self._cache_stats)
        self.started = int(time.time())
        self._lm, self._base = lm, BaseModelReader(lm)
        self._chat_template: ChatTemplateOf = chat_template
        self._fingerprint = lm.geometry.fingerprint
        # One text at a time: a slow one may delay others, but neither the event loop nor all worker threads.
        self._texts = anyio.CapacityLimiter(1)
        # A store of soft prompts far away may hang: those who wait for it do not keep the threads that others need.
        self._far_away = anyio.CapacityLimiter(_FAR_AWAY_AT_ONCE)

    async def start(self) -> None:
        """Start the engine and load the pinned soft prompts. Raises ApiError, EngineError."""
        await self.engine.start()
        for name in sorted(self.prompt_cache.pinned):
            await self.prompt_cache.load(name)

    async def stop(self) -> None:
        """Stop the engine, and with it all running jobs. A soft prompt that a store far away does not give is left."""
        with anyio.move_on_after(self.limits.drain_s):
            await self.prompt_cache.settle()
        await self.engine.stop()

    @property
    def unready(self) -> str:
        """Why no request is accepted; "" while ready."""
        return "the engine has failed" if self.engine.failure else "stopping" if self.rate_limit.draining else ""

    @contextlib.asynccontextmanager
    async def working(self, request: GenerationRequest) -> AsyncIterator[PreparedRequest]:
        """Prepare a request, and hold its soft prompt and its share of the limits until it ends. Raises ApiError."""
        if self.engine.failure:
            raise ApiError(503, "The engine has failed.", "engine_failed", retry_after_s=5)
        prompt = await self._route(request, await self._prompt_of(request.model))
        with self.rate_limit.answers(len(request.texts) * request.n):
            if prompt is None:
                yield await self._prepare(request, self._base, None, self._fingerprint)
                return
            async with self._hold(prompt, request.model) as held:
                fingerprint = f"{self._fingerprint}-{held.reader.digest[:16]}"
                yield await self._prepare(request, held.reader, held.key, fingerprint)

    async def answers(self, work: PreparedRequest, opened: float) -> AsyncGenerator[TextPiece, None]:
        """Pieces of all answers as they are generated; closing the generator cancels the jobs. Raises ApiError.

        Args:
            opened: `time.monotonic()` when the request arrived, for the metrics.
        """
        self.metrics.prompt_tokens.inc(work.prompt_tokens)
        streams = [
            stream_text(self.engine, job, i, self._lm.tokenizer, work.stops, _TokenTimer(self.metrics, opened).tick)
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
        """Read the newest version of a soft prompt now; routers are read for every request anyway. Raises ApiError."""
        try:
            await run_sync(self.catalogue.fetch, name, limiter=self._far_away, abandon_on_cancel=True)
        except UnreachableError as error:
            raise store_failed() from error
        except StoreError as error:
            log.warning("store_error", prompt=name, error=error.what)
        if await run_sync(self.catalogue.is_router, name):
            self.prompt_cache.reopen(name)
        else:
            await self.prompt_cache.load(name)

    async def models(self) -> list[CatalogueEntry]:
        """The soft prompts and routers that requests can name."""
        entries = await run_sync(self.catalogue.entries)
        return [entry for entry in entries if not entry.fault and not self.prompt_cache.is_closed(entry.name)]

    async def entry(self, name: str) -> CatalogueEntry:
        """The catalogue entry of one soft prompt, even if it cannot be served. Raises ApiError 404."""
        for entry in await run_sync(self.catalogue.entries):
            if entry.name == name:
                return entry
        raise unknown_prompt(name)

    def model_id(self, entry: CatalogueEntry) -> str:
        """A prompt's name in requests: NAME, or BASE:NAME if the base model has that name."""
        return f"{self.name}:{entry.name}" if entry.name == self.name else entry.name

    @contextlib.asynccontextmanager
    async def _hold(self, prompt: str, model: str) -> AsyncIterator[CachedPrompt]:
        """`PromptCache.hold` for a request: a prompt that was unloaded just now is an unknown model."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                held = await stack.enter_async_context(self.prompt_cache.hold(prompt))
            except ApiError as error:
                if error.status != 404:
                    raise
                raise unknown_model(model, ()) from None
            yield held

    async def _prompt_of(self, model: str) -> str | None:
        """The soft prompt of a model name; None for the base model alone."""
        if model == self.name:
            return None
        prompt = model.removeprefix(f"{self.name}:")
        known = self.prompt_cache.users(prompt) is not None or await self._knows(prompt)
        if known and not self.prompt_cache.is_closed(prompt):
            return prompt
        raise unknown_model(model, [self.name, *map(self.model_id, await self.models())])

    async def _route(self, request: GenerationRequest, prompt: str | None) -> str | None:
        """The soft prompt that a router chooses for the request's text; other prompts are returned. Raises ApiError."""
        if prompt is None or not await run_sync(self.catalogue.is_router, prompt):
            return prompt
        if len(request.texts) > 1:  # each might need another soft prompt, and a request holds one
            raise invalid("A router takes one text a request.", request.param)
        prompt_router = await as_api_error(self._load_router(prompt))
        async with self._hold(prompt_router.names[0], request.model) as held:
            (ids,) = await self._read_texts(request, held.reader)
        return prompt_router.names[await run_sync(prompt_router.choose, self._lm, ids.ids)]

    async def _read_texts(self, request: GenerationRequest, reader: PromptReader) -> list[EncodedPrompt]:
        """Token ids of the request's texts. Raises ApiError."""
        try:
            return await run_sync(
                lambda: [text(reader) for text in request.texts], limiter=self._texts, abandon_on_cancel=True
            )
        except DataError as error:
            raise from_text(error, request.param) from error

    async def _prepare(
        self, request: GenerationRequest, reader: PromptReader, prompt: str | None, fingerprint: str
    ) -> PreparedRequest:
        texts = await self._read_texts(request, reader)
        name, number = uuid.uuid4().hex, itertools.count()
        jobs = tuple(self._job(request, ids, prompt, name, next(number)) for ids in texts for _ in range(request.n))
        return PreparedRequest(name, jobs, request.sampling.stop, sum(ids.text_tokens for ids in texts), fingerprint)

    def _job(self, request: GenerationRequest, ids: EncodedPrompt, prompt: str | None, name: str, number: int) -> Job:
        context = self.engine.context
        room, most = context - ids.taken, self.limits.prompt_tokens or context
        if ids.taken > most or room < (request.new_tokens or 1):
            wanted = f"{ids.taken} tokens with the soft prompt and {request.new_tokens or 1} new ones"
            what = f"The request is too long: {wanted}, in a context of {context} and at most {most} of prompt."
            raise invalid(what, request.param, "context_length_exceeded")
        length = min(request.new_tokens or room, self.limits.new_tokens)
        seed = (request.sampling.seed + number) % 2**63
        sampling = replace(request.sampling, max_new_tokens=length, seed=seed, stop=())
        return Job(
            f"{name}-{number}",
            prompt,
            ids.ids,
            sampling,
            ids.end_ids,
            request.penalties,
            request.logprobs,
            request.tenant,
        )

    async def _load_router(self, name: str) -> router.Router:
        await self._bring(name)
        path = await run_sync(self.catalogue.router, name)
        if path is None:
            raise unknown_prompt(name)
        return await run_sync(router.load_router, path, self._lm.geometry)

    async def _knows(self, name: str) -> bool:
        """Whether there is a soft prompt or router of this name; one that came just now is looked for."""
        if await run_sync(self.catalogue.knows, name):
            return True
        if not store.PROMPT_NAME.fullmatch(name):
            return False
        try:
            await run_sync(self.catalogue.look_again, limiter=self._far_away, abandon_on_cancel=True)
        except StoreError as error:
            log.warning("store_error", error=error.what)
            raise store_failed() from error
        return await run_sync(self.catalogue.knows, name)

    async def _bring(self, name: str) -> None:
        """Bring the listed version of a soft prompt to this disk; an older one that is here is used if that fails."""
        if await run_sync(self.catalogue.is_current, name):
            return
        try:
            await run_sync(self.catalogue.fetch, name, limiter=self._far_away, abandon_on_cancel=True)
        except StoreError as error:
            log.warning("store_error", prompt=name, error=error.what)
            if (self.catalogue.path(name) or self.catalogue.router(name)) is None:
                raise (store_failed() if isinstance(error, UnreachableError) else error) from error

    async def _read(self, name: str) -> SoftPromptReader:
        path = await run_sync(self.catalogue.path, name)
        if path is None:
            raise unknown_prompt(name)
        return await run_sync(load_reader, self._lm, path, self._chat_template)

    def _cache_stats(self) -> PromptCacheStats:
        cache = self.prompt_cache
        return PromptCacheStats(len(cache), cache.hits, cache.misses, cache.evictions)


class _TokenTimer:
    """Measures an answer's time in the queue, to its first token and between its tokens."""

    def __init__(self, metrics: ServerMetrics, opened: float) -> None:
        self._metrics, self._last = metrics, opened
        self._first = True

    def tick(self, token: Token) -> None:
        now = time.monotonic()
        if token.queue_s is not None:
            self._metrics.queue.observe(token.queue_s)
        histogram = self._metrics.first_token if self._first else self._metrics.between_tokens
        histogram.observe(now - self._last)
        self._last, self._first = now, False


def served_name(model: str) -> str:
    """A base model's name in requests: its Hub id or built-in name, or the last part of its path."""
    path = Path(model).expanduser()
    if not path.exists():
        return public_name(model)
    return path.resolve().stem if path.suffix == ".gguf" else path.resolve().name
