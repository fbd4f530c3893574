"""The embedded engine: continuous batching of Transformers, in a thread of this process.

A job's ids are its prefix, virtual ids included, and its text. The manager schedules, pages and shares them like any
text (`loop`); at the virtual positions the prompt's embeddings, or its keys and values, are used instead of a token's
(`paged`). The model given is not changed: the engine runs a copy that shares its weights.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import final

from transformers import PreTrainedModel
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens

from softprompt.engine.base import EngineStats, Job, Token
from softprompt.engine.batching_loop import BatchingLoop, BatchRow, RowUpdates
from softprompt.engine.capacity import Capacity
from softprompt.engine.checks import check_context_room, check_job, check_prefix, check_supported, unsupported
from softprompt.engine.integrity import check_blocks
from softprompt.engine.probe import probe
from softprompt.engine.virtual_tokens import VirtualVocabulary
from softprompt.errors import EngineError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix


@final
class TransformersEngine:
    """Runs jobs on one causal model; see `Engine` for what its methods promise.

    Args:
        lm: its weights are shared and not changed.
        capacity: how much is taken at once.
    """

    def __init__(self, lm: FrozenLM, capacity: Capacity | None = None) -> None:
        self._lm, self._capacity = lm, capacity or Capacity()
        self._vocabulary = VirtualVocabulary(lm.geometry.vocab)
        self._rows: dict[str, BatchRow] = {}  # by the job's id
        self._keys = 0
        self._slots = 0  # tokens of the largest job that the cache holds
        self._stats = self._before = EngineStats(0, 0, 0.0)
        self._loop: BatchingLoop | None = None

    async def start(self) -> None:
        """Make the cache and start the thread, and compare what comes out with `softprompt.prefix`.

        Raises:
            UnsupportedModelError: the model's cache cannot be paged, or its logits are not exact then.
            EngineError: the cache does not fit in memory.
        """
        if self._loop is not None:
            raise EngineError("the engine was started before", hint="make a new one")
        check_supported(self._lm)
        self._loop = await asyncio.to_thread(self._made, asyncio.get_running_loop())
        self._loop.start()
        try:
            await probe(self._lm, self)
        except BaseException:
            await self.stop()
            raise
        self._before = self._stats

    async def stop(self) -> None:
        """End the thread, and with it every job that still runs."""
        if self._loop is not None and self._loop.is_running():
            await asyncio.to_thread(self._loop.close)
            await asyncio.sleep(0)  # what the thread said last is heard first

    @property
    def context(self) -> int:
        """Tokens that one job may have in all: what the model takes, and what the cache holds."""
        return min(self._lm.geometry.max_positions, self._slots or self._lm.geometry.max_positions)

    @property
    def failure(self) -> str:
        """Why no job can be taken any more; "" while all is well."""
        return "the engine is not started" if self._loop is None else self._loop.ended

    async def load(self, name: str, prefix: Prefix) -> None:
        """Make a soft prompt known. One of this name is replaced: jobs that run keep the old one.

        Raises:
            EngineError: it does not fit the model, the context or the cache.
        """
        self._check_running()
        await asyncio.to_thread(check_prefix, self._lm, name, prefix, self._rooms)
        self._vocabulary.load(name, prefix, self._lm.device, self._lm.dtype)

    async def unload(self, name: str) -> None:
        """Forget a soft prompt; jobs that run keep it until they end. Raises EngineError for an unknown name."""
        self._vocabulary.unload(name)

    def loaded(self) -> tuple[str, ...]:
        """Names that jobs can give."""
        return self._vocabulary.names()

    async def stream(self, job: Job) -> AsyncGenerator[Token, None]:
        """Tokens as they come; the last has a finish. Leaving the iterator cancels the job.

        Raises, with the first token asked for:
            EngineError: an unknown name, ids that are no tokens, no room in the context or the cache, a job that
                failed.
        """
        loop = self._check_running()
        heard: asyncio.Queue[Token | EngineError] = asyncio.Queue()
        row = self._admit(job, heard)
        try:
            loop.submit(row)
        except EngineError:
            self._forget(row)
            raise
        try:
            while True:
                word = await heard.get()
                if isinstance(word, EngineError):
                    raise word
                yield word
                if word.finish:
                    return
        finally:
            loop.cancel(row)

    def stats(self) -> EngineStats:
        """What it is busy with now."""
        now, before = self._stats, self._before
        cached, computed = now.cached_tokens - before.cached_tokens, now.computed_tokens - before.computed_tokens
        return EngineStats(now.running, now.waiting, now.kv_usage, cached, computed)

    def check_integrity(self) -> None:
        """Raises AssertionError if blocks, virtual ids or reference counts do not add up. Waits for a step to end."""
        holders = [row.loaded for row in self._rows.values()]
        self._vocabulary.check_integrity(holders)
        if self._loop is not None:
            with self._loop.paused() as (processor, rows):
                assert set(rows.values()) <= set(self._rows.values()), "a row runs that nobody knows"
                if processor is not None:
                    check_blocks(processor, rows)

    def _made(self, listener: asyncio.AbstractEventLoop) -> BatchingLoop:
        """The loop with its cache, not started yet."""

        def report(news: RowUpdates) -> None:
            with suppress(RuntimeError):  # a closed event loop: nobody listens any more
                listener.call_soon_threadsafe(self._hear, news)

        try:
            loop = BatchingLoop(self._lm, _copy(self._lm.hf_model), self._capacity.config(self._lm), report)
            loop.prepare()
        except ValueError as error:  # what the manager says of kinds of layers it does not know
            raise unsupported(self._lm, str(error)) from error
        except MemoryError as error:
            hint = "a smaller cache (cache_tokens), or a smaller model"
            raise EngineError("the cache does not fit in memory", where=self._lm.name, hint=hint) from error
        assert loop.batch_processor is not None
        self._slots = infer_max_single_request_tokens(loop.batch_processor.cache)
        return loop

    @property
    def _rooms(self) -> dict[str, int]:
        return {"context": self._lm.geometry.max_positions, "cache": self._slots}

    def _check_running(self) -> BatchingLoop:
        if self._loop is None or self._loop.ended:
            raise EngineError(self.failure, where=self._lm.name)
        return self._loop

    def _admit(self, job: Job, heard: asyncio.Queue[Token | EngineError]) -> BatchRow:
        """The job as a row that holds its prefix."""
        if job.id in self._rows:
            raise EngineError("a job of this id runs already", where=job.id)
        check_job(self._lm, job)
        loaded = self._vocabulary.take(job.prompt)
        try:
            before, new = len(loaded.ids) + len(job.ids), job.sampling.max_new_tokens
            check_context_room(job.id, before, new, self._rooms, "shorten the text or ask for fewer new tokens")
            opening = self._vocabulary.salted(job.ids[0], job.tenant)
        except EngineError:
            self._vocabulary.release(loaded)
            raise
        self._keys += 1
        row = self._rows[job.id] = BatchRow(str(self._keys), job, loaded, opening, heard.put_nowait)
        return row

    def _forget(self, row: BatchRow) -> None:
        del self._rows[row.job.id]
        self._vocabulary.release(row.loaded)

    def _hear(self, news: RowUpdates) -> None:
        for row, word in news.said:
            row.hear(word)
        for row in news.gone:
            self._forget(row)
        self._stats = news.stats


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model with modules and config of its own, and the same weights."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
