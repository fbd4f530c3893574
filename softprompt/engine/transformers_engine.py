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
    """Runs jobs on one causal model; `Engine` documents the methods.

    Args:
        lm: the model; its weights are shared, not copied.
        capacity: sizes of batch and cache.
    """

    def __init__(self, lm: FrozenLM, capacity: Capacity | None = None) -> None:
        self._lm, self._capacity = lm, capacity or Capacity()
        self._vocabulary = VirtualVocabulary(lm.geometry.vocab)
        self._rows: dict[str, BatchRow] = {}  # by the job's id
        self._keys = 0
        self._slots = 0  # tokens of the largest job that the cache holds
        self._stats = EngineStats(0, 0, 0.0)
        self._before = self._stats
        self._loop: BatchingLoop | None = None

    async def start(self) -> None:
        """Allocate the cache, start the thread and verify its log-probabilities with `softprompt.prefix`.

        Raises:
            UnsupportedModelError: the model's cache cannot be paged, or not exactly.
            EngineError: the cache does not fit in memory.
        """
        if self._loop is not None:
            raise EngineError("the engine was started before", hint="make a new one")
        check_supported(self._lm)
        if self._lm.is_split:
            raise unsupported(self._lm, "it is split over devices, and the pages of keys and values are on one of them")
        self._loop = await asyncio.to_thread(self._create_loop, asyncio.get_running_loop())
        self._loop.start()
        try:
            await probe(self._lm, self)
        except BaseException:
            await self.stop()
            raise
        self._before = self._stats

    async def stop(self) -> None:
        """Stop the thread, and with it all running jobs."""
        if self._loop is not None and self._loop.is_running():
            await asyncio.to_thread(self._loop.close)
            await asyncio.sleep(0)  # let the event loop process the thread's last report

    @property
    def context(self) -> int:
        """Maximum tokens of a job: prefix, text and answer, as limited by the model and by the cache."""
        return min(self._lm.geometry.max_positions, self._slots or self._lm.geometry.max_positions)

    @property
    def failure(self) -> str:
        """Why no job is accepted any more; "" while the engine works."""
        return "the engine is not started" if self._loop is None else self._loop.ended

    async def load(self, name: str, prefix: Prefix) -> None:
        """Load a soft prompt under a name. Running jobs keep an older version of that name.

        Raises:
            EngineError: it does not fit the model, the context or the cache.
        """
        self._check_running()
        await asyncio.to_thread(check_prefix, self._lm, name, prefix, self._capacities)
        self._vocabulary.load(name, prefix, self._lm.device, self._lm.dtype)

    async def unload(self, name: str) -> None:
        """Unload a soft prompt; running jobs keep it until they end. Raises EngineError for an unknown name."""
        self._vocabulary.unload(name)

    def loaded(self) -> tuple[str, ...]:
        """Names of the loaded soft prompts."""
        return self._vocabulary.names()

    async def stream(self, job: Job) -> AsyncGenerator[Token, None]:
        """Tokens as they are generated; the last has a finish. Closing the generator cancels the job.

        Raises, at the first token:
            EngineError: unknown prompt, invalid ids, context or cache too short, or the job failed.
        """
        loop = self._check_running()
        outputs: asyncio.Queue[Token | EngineError] = asyncio.Queue()
        row = self._admit(job, outputs)
        try:
            loop.submit(row)
        except EngineError:
            self._forget(row)
            raise
        try:
            while True:
                output = await outputs.get()
                if isinstance(output, EngineError):
                    raise output
                yield output
                if output.finish:
                    return
        finally:
            loop.cancel(row)

    def stats(self) -> EngineStats:
        """The current load."""
        now, before = self._stats, self._before
        cached, computed = now.cached_tokens - before.cached_tokens, now.computed_tokens - before.computed_tokens
        return EngineStats(now.running, now.waiting, now.kv_usage, cached, computed)

    def check_integrity(self) -> None:
        """Raises AssertionError if blocks, virtual ids or user counts are inconsistent. Waits for a step to end."""
        holders = [row.loaded for row in self._rows.values()]
        self._vocabulary.check_integrity(holders)
        if self._loop is not None:
            with self._loop.paused() as (processor, rows):
                assert set(rows.values()) <= set(self._rows.values()), "an unknown row is running"
                if processor is not None:
                    check_blocks(processor, rows)

    def _create_loop(self, listener: asyncio.AbstractEventLoop) -> BatchingLoop:
        """The loop with its cache allocated, not started yet."""

        def report(updates: RowUpdates) -> None:
            with suppress(RuntimeError):  # the event loop is closed
                listener.call_soon_threadsafe(self._apply_updates, updates)

        try:
            loop = BatchingLoop(self._lm, _copy(self._lm.hf_model), self._capacity.config(self._lm), report)
            loop.prepare()
        except ValueError as error:  # of the manager, for unknown kinds of layers
            raise unsupported(self._lm, str(error)) from error
        except MemoryError as error:
            hint = "a smaller cache (cache_tokens), or a smaller model"
            raise EngineError("the cache does not fit in memory", where=self._lm.name, hint=hint) from error
        assert loop.batch_processor is not None
        self._slots = infer_max_single_request_tokens(loop.batch_processor.cache)
        return loop

    @property
    def _capacities(self) -> dict[str, int]:
        return {"context": self._lm.geometry.max_positions, "cache": self._slots}

    def _check_running(self) -> BatchingLoop:
        if self._loop is None or self._loop.ended:
            raise EngineError(self.failure, where=self._lm.name)
        return self._loop

    def _admit(self, job: Job, outputs: asyncio.Queue[Token | EngineError]) -> BatchRow:
        """Check a job and make it a row, which holds its prefix."""
        if job.id in self._rows:
            raise EngineError("a job with this id is running already", where=job.id)
        check_job(self._lm, job)
        loaded = self._vocabulary.take(job.prompt)
        try:
            before, new = len(loaded.ids) + len(job.ids), job.sampling.max_new_tokens
            check_context_room(job.id, before, new, self._capacities, "shorten the text or ask for fewer new tokens")
            opening = self._vocabulary.salted(job.ids[0], job.tenant)
        except EngineError:
            self._vocabulary.release(loaded)
            raise
        self._keys += 1
        row = BatchRow(str(self._keys), job, loaded, opening, outputs.put_nowait)
        self._rows[job.id] = row
        return row

    def _forget(self, row: BatchRow) -> None:
        del self._rows[row.job.id]
        self._vocabulary.release(row.loaded)

    def _apply_updates(self, updates: RowUpdates) -> None:
        for row, output in updates.outputs:
            row.deliver(output)
        for row in updates.ended:
            self._forget(row)
        self._stats = updates.stats


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model with its own modules and config, sharing the weights."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
