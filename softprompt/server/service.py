"""The service behind the HTTP routes: turns requests into answers.

A request passes four steps. Its model's name becomes a soft prompt, by way of a router if it names one. The prompt is
held in the cache until the answers are complete. Its texts become token ids, and each of its answers a job. The engine
runs the jobs, whose tokens come back as one stream of text pieces. HTTP, keys and JSON belong to the routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import anyio
import structlog
from anyio.to_thread import run_sync
from starlette.types import Receive

from softprompt.data.tokenizer import decode
from softprompt.engine.base import Engine
from softprompt.engine.constraint import Constraint, GrammarCompiler
from softprompt.errors import DataError, EngineError, MissingExtraError
from softprompt.formatting.chat_template import ChatTemplateOf
from softprompt.models.frozen_lm import FrozenLM
from softprompt.server.answer_parts import AnswerFormat
from softprompt.server.catalogue import Catalogue
from softprompt.server.chat_format import ChatFormat
from softprompt.server.chat_reading import SystemTurns
from softprompt.server.error_responses import ApiError, from_text, invalid
from softprompt.server.generation_stream import Interruptions
from softprompt.server.given_text import stream_answer
from softprompt.server.job_prompts import JobPrompts
from softprompt.server.limits import Limits
from softprompt.server.metrics import ServerMetrics
from softprompt.server.model_directory import ModelDirectory
from softprompt.server.prepared import JobMaker, PreparedRequest, TokenTimer
from softprompt.server.prompt_cache import as_api_error
from softprompt.server.prompt_reader import BaseModelReader, EncodedPrompt, PromptReader, check_token_ids
from softprompt.server.rate_limit import RateLimit
from softprompt.server.request import GenerationRequest
from softprompt.server.streaming import TextPiece, merge_streams, told_apart
from softprompt.server.structured_output import RequestedGrammar

log = structlog.get_logger("softprompt.server")


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
        system_turns: what becomes of system turns that soft prompts were not trained with; "": as their cards say.
        jobs: the soft prompts of fine-tuning jobs, each for its owner.

    Attributes:
        directory: the models that requests can name.
        stopping: set when running requests must end now.
        kv_bytes_per_token: bytes of one token's keys and values.
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
        system_turns: SystemTurns = "",
        jobs: JobPrompts | None = None,
    ) -> None:
        self.name, self.engine = name, engine
        self.rate_limit = rate_limit or RateLimit(Limits())
        self.limits = self.rate_limit.limits
        self.directory = ModelDirectory(
            lm,
            engine,
            catalogue,
            name=name,
            places=places,
            pinned=pinned,
            chat_template=chat_template,
            system_turns=system_turns,
            jobs=jobs,
        )
        self.catalogue, self.prompt_cache = catalogue, self.directory.prompt_cache
        self.metrics = ServerMetrics(engine.stats, self.directory.stats)
        self.started = int(time.time())
        self.stopping = asyncio.Event()
        self._lm, self._base = lm, BaseModelReader(lm)
        self._jobs = JobMaker(engine, self.limits, lm.geometry.vocab)
        self._fingerprint = lm.geometry.fingerprint
        self.kv_bytes_per_token = lm.geometry.kv_bytes_per_token(lm.dtype.itemsize)
        # One text at a time: a slow one may delay others, but neither the event loop nor all worker threads.
        self._texts = anyio.CapacityLimiter(1)
        self._grammars, self._compiling = GrammarCompiler(lm), anyio.CapacityLimiter(1)

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

    def interruptions(self, receive: Receive) -> Interruptions:
        """The events that end a request which begins now."""
        deadline = asyncio.get_running_loop().time() + self.limits.deadline_s
        return Interruptions(receive, deadline, self.stopping)

    @contextlib.asynccontextmanager
    async def working(self, request: GenerationRequest) -> AsyncIterator[PreparedRequest]:
        """Prepare a request, and hold its soft prompt and its share of the limits until it ends. Raises ApiError."""
        if self.engine.failure:
            raise ApiError(503, "The engine has failed.", "engine_failed", retry_after_s=5)
        prompt = await self._route(request, await self.directory.find(request.model, request.caller))
        turn = self.rate_limit.turn(len(request.texts) * request.made, request.made)
        with self.rate_limit.answers(turn):
            if prompt is None:
                yield await self._prepare(request, self._base, None, self._fingerprint, turn)
                return
            async with self.directory.hold(prompt, request.model) as held:
                fingerprint = f"{self._fingerprint}-{held.reader.digest[:16]}"
                yield await self._prepare(request, held.reader, held.key, fingerprint, turn)

    async def encode(self, request: GenerationRequest) -> EncodedPrompt:
        """The token ids of the request's one text, as its model reads it. Raises ApiError."""
        prompt = await self._route(request, await self.directory.find(request.model, request.caller))
        if prompt is None:
            (ids,) = await self._read_texts(request, self._base)
            return ids
        async with self.directory.hold(prompt, request.model) as held:
            (ids,) = await self._read_texts(request, held.reader)
            return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens as they are written. Raises ApiError for ids outside the vocabulary."""
        if ids:
            check_token_ids(ids, self._lm.geometry.vocab, "tokens")
        return decode(ids, self._lm.tokenizer)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary writes them."""
        tokens = self._lm.tokenizer.convert_ids_to_tokens(list(ids))
        return [tokens] if isinstance(tokens, str) else tokens

    async def answers(self, work: PreparedRequest, opened: float) -> AsyncGenerator[TextPiece, None]:
        """Pieces of all answers as they are generated; closing the generator cancels the jobs. Raises ApiError.

        Args:
            opened: `time.monotonic()` when the request arrived, for the metrics.
        """
        self.metrics.prompt_tokens.inc(work.prompt_tokens)
        keeps_special = work.answer is not None and work.answer.keeps_special
        streams = (
            told_apart(
                stream_answer(
                    self.engine,
                    job,
                    i,
                    self._lm.tokenizer,
                    work.stops,
                    TokenTimer(self.metrics, opened).tick,
                    text,
                    keeps_special=keeps_special,
                ),
                work.answer,
            )
            for i, (job, text) in enumerate(zip(work.jobs, work.given, strict=True))
        )
        unfinished = len(work.jobs)
        try:
            async with aclosing(merge_streams(streams, work.turn)) as pieces:
                async for piece in pieces:
                    self.metrics.generation_tokens.inc(piece.tokens)
                    if piece.finish:
                        unfinished -= 1
                        self.metrics.success.labels(piece.finish).inc()
                        self.metrics.whole_request.observe(time.monotonic() - opened)
                    yield piece
        except EngineError as error:
            log.error("engine_error", job=work.id, error=error.what)
            if self.engine.failure:
                raise ApiError(503, "The engine has failed.", "engine_failed", retry_after_s=5) from error
            raise ApiError(500, "The engine could not run this request.", "engine_error") from error
        finally:
            if unfinished:
                self.metrics.success.labels("abort").inc(unfinished)

    async def _route(self, request: GenerationRequest, prompt: str | None) -> str | None:
        """The soft prompt that a router chooses for the request's text; other prompts are returned. Raises ApiError."""
        if prompt is None or not await run_sync(self.catalogue.is_router, prompt):
            return prompt
        if len(request.texts) > 1:  # each might need another soft prompt, and a request holds one
            raise invalid("A router takes one text a request.", request.param)
        prompt_router = await as_api_error(self.directory.router(prompt))
        async with self.directory.hold(prompt_router.names[0], request.model) as held:
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
        self, request: GenerationRequest, reader: PromptReader, prompt: str | None, fingerprint: str, turn: int
    ) -> PreparedRequest:
        texts = await self._read_texts(request, reader)
        answer, grammar = None, request.grammar
        if request.is_chat:
            answer, grammar = await run_sync(_formats, request, reader.chat_format, limiter=self._texts)
        constraint = await self._compiled(grammar)
        return self._jobs.prepare(request, texts, prompt, fingerprint, turn, constraint, answer)

    async def _compiled(self, grammar: RequestedGrammar | None) -> Constraint | None:
        """The grammar ready for answers. Raises ApiError."""
        if grammar is None:
            return None
        try:
            return await run_sync(self._grammars.compile, grammar.lark, limiter=self._compiling, abandon_on_cancel=True)
        except (DataError, MissingExtraError) as error:
            raise from_text(error, grammar.param) from error


def _formats(request: GenerationRequest, chat: ChatFormat) -> tuple[AnswerFormat | None, RequestedGrammar | None]:
    """How a conversation's answers are told apart, and their grammar. Raises ApiError."""
    chat = chat.thinking(request.thinking)
    try:
        return chat.answer(request.tools), chat.grammar(request.tools, request.grammar)
    except DataError as error:
        raise from_text(error, request.param) from error
