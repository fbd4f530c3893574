"""The thread that runs the batches: Transformers' manager with soft prompts, sampling and reports of our own.

Its scheduling, paging and prefix cache stay as they are. Rows come and go by orders, taken between two steps in the
order they were given; what happened is told in one call a step. `submit`, `cancel`, `close` and `paused` are called
from outside; all else runs in the thread.

Shapes: Q tokens of a batch, H width, R rows that get a token, V vocabulary.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchProcessor,
)
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestState

from softprompt.engine.base import EngineStats, Job, Token
from softprompt.engine.cache_eviction import register_lru_scheduler
from softprompt.engine.paged_cache import (
    NAME,
    AttentionStep,
    RowChunk,
    plan_attention,
    register_paged_attention,
    virtual_spans,
)
from softprompt.engine.sampler import Sampler
from softprompt.engine.transformers_compat import OpenManager
from softprompt.engine.virtual_tokens import LoadedPrompt, only_text_ids
from softprompt.errors import EngineError, first_line
from softprompt.inference.sampling import argmax_ids
from softprompt.models.frozen_lm import FrozenLM

FAILED_STEPS = 3  # in a row, and the engine has failed


@dataclass(eq=False)
class BatchRow:
    """A job in the loop.

    Attributes:
        key: never used by another row, unlike the job's id.
        opening: the id of the text's first token, in its tenant's alphabet.
        hear: takes each token and, at last, an error; called by whom the news is reported to.
        queue_s: seconds from here to the first batch it is in; None before.
    """

    key: str
    job: Job
    loaded: LoadedPrompt
    opening: int
    hear: Callable[[Token | EngineError], None]
    queue_s: float | None = None

    def __post_init__(self) -> None:
        self.sampler, self.made = Sampler(self.job), time.monotonic()
        self.ids = [*self.loaded.ids, self.opening, *self.job.ids[1:]]

    def meet(self) -> None:
        """It is in a batch for the first time."""
        self.queue_s = time.monotonic() - self.made

    def next(self, logits_V: Tensor, best: int) -> Token:
        """See `Sampler.next`; with the first token comes the time in the queue. Raises EngineError."""
        token = self.sampler.next(logits_V, best)
        return token if self.sampler.length > 1 else replace(token, queue_s=self.queue_s)


@dataclass(frozen=True)
class RowUpdates:
    """What happened since the last news.

    Attributes:
        said: tokens and errors, in order.
        gone: rows that hold nothing any more.
    """

    said: list[tuple[BatchRow, Token | EngineError]]
    gone: list[BatchRow]
    stats: EngineStats


class _Nobody:
    """Where the manager sends outputs: they have been told already, token by token."""

    def deliver(self, output: GenerationOutput) -> None: ...

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None: ...

    def fail_and_deliver(self, state: RequestState, error: Exception) -> None: ...


@final
class BatchingLoop(OpenManager):
    """The manager and its thread.

    Args:
        model: a model of the loop's own: its attention is replaced.
        report: called from the thread with the news.

    Attributes:
        ended: why no row is taken any more; "" while all is well.
    """

    def __init__(
        self,
        lm: FrozenLM,
        model: PreTrainedModel,
        config: ContinuousBatchingConfig,
        report: Callable[[RowUpdates], None],
    ) -> None:
        register_paged_attention()
        register_lru_scheduler()
        super().__init__(model, GenerationConfig(do_sample=False, eos_token_id=-1), config)  # type: ignore[arg-type]
        self.output_router = _Nobody()  # type: ignore[assignment]
        self.ended, self._report, self._lm = "", report, lm
        self._orders: deque[tuple[BatchRow, bool]] = deque()
        self._ordering = threading.Lock()
        self._rows: dict[str, BatchRow] = {}
        self._said: list[tuple[BatchRow, Token | EngineError]] = []
        self._gone: list[BatchRow] = []
        self._failed_steps = self._cached = self._computed = 0
        self._stats = EngineStats(0, 0, 0.0)

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        model.set_attn_implementation(NAME)

    def prepare(self) -> None:
        """Make the cache, so that what is wrong with it is raised here and not in the thread."""
        processor = self.create_processor()
        # The manager reads no more keys in a step than the cache holds, which rows that share a prefix exceed.
        io: Any = processor.inputs_and_outputs
        most = processor.scheduler.max_requests_per_batch * self._lm.geometry.max_positions
        processor.cache.max_tokens_read = most
        io.read_index_storage = io.read_index_storage.new_zeros(len(processor.cache.cache_allocators), most)

    def start(self) -> None:
        self.start_thread()

    def submit(self, row: BatchRow) -> None:
        """Take a row. Raises EngineError when the loop has ended."""
        self._order(row, True)

    def cancel(self, row: BatchRow) -> None:
        """End a row and free what it holds; nothing for one that has ended."""
        with suppress(EngineError):  # with the loop all rows have ended
            self._order(row, False)

    def close(self) -> None:
        """End the thread, and with it all rows."""
        self.background_thread_status.request_stop(BackgroundThreadStatus.HARD_STOP, 0)
        self.wake()
        self.join_thread()
        self.batch_processor = None  # and with it the cache

    @contextmanager
    def paused(self) -> Iterator[tuple[ContinuousBatchProcessor | None, dict[str, BatchRow]]]:
        """The processor and the rows while nothing moves."""
        if not self.is_running():
            yield self.batch_processor, self._rows
            return
        with self.pause():
            yield self.batch_processor, self._rows

    def _order(self, row: BatchRow, come: bool) -> None:
        with self._ordering:
            if self.ended:
                raise EngineError(self.ended, where=row.job.id)
            self._orders.append((row, come))
        self.wake()

    def run_loop(self) -> None:
        try:
            super().run_loop()
        finally:
            error = self.background_thread_status.fatal_error
            with self._ordering:
                self.ended = "the engine was stopped" if error is None else f"the engine failed: {first_line(error)}"
            rows = [*self._rows.values(), *(row for row, come in self._orders if come)]
            self._rows.clear()
            self._orders.clear()
            self._report(RowUpdates([(row, EngineError(self.ended)) for row in rows], rows, EngineStats(0, 0, 0.0)))

    def run_iteration(self, processor: ContinuousBatchProcessor, bootstrapping: bool) -> bool:
        self._obey(processor)
        self._tell(processor)  # the body may wait
        going = super().run_iteration(processor, bootstrapping)
        for row in [row for row, word in self._said if isinstance(word, EngineError) or word.finish]:
            self._end(processor, row)
        self._tell(processor)
        return going

    def _obey(self, processor: ContinuousBatchProcessor) -> None:
        while self._orders:
            row, come = self._orders.popleft()
            if not come:
                self._end(processor, row)
                continue
            self._rows[row.key] = row
            ends, most = list(row.job.end_ids), row.job.sampling.max_new_tokens
            processor.scheduler.add_waiting_request(
                RequestState(row.key, row.ids, max_new_tokens=most, eos_token_id=ends)
            )

    def _end(self, processor: ContinuousBatchProcessor, row: BatchRow) -> None:
        """Free what a row holds; the manager has done so for one that it has finished."""
        if self._rows.pop(row.key, None) is not None:
            processor.scheduler.set_request_cancellation(row.key)
            processor.scheduler.clear_cancelled_requests()
            # The manager lets nobody in after it has put a row back, until one finishes: this may have been the last.
            processor.scheduler.block_new_requests = False
            self._gone.append(row)

    def _tell(self, processor: ContinuousBatchProcessor) -> None:
        """Report if there is something new."""
        scheduler, cache = processor.scheduler, processor.cache
        free = cache.compute_free_capacity(relative=False)
        free += sum(len(one.ledger.cached_blocks) * one.bytes_per_block for one in cache.cache_allocators.values())
        usage = 1 - free / (cache.num_sectors * cache.bytes_per_sector)
        running, waiting = len(scheduler.active_requests), len(scheduler.waiting_requests)
        stats = EngineStats(running, waiting, usage, self._cached, self._computed)
        if self._said or self._gone or stats != self._stats:
            news, self._said, self._gone, self._stats = RowUpdates(self._said, self._gone, stats), [], [], stats
            self._report(news)

    @torch.inference_mode()
    def run_step(self) -> None:
        assert self.batch_processor is not None
        io: Any = self.batch_processor.inputs_and_outputs
        rows = [self._rows[request.state.request_id] for request in io.requests_in_batch]
        try:
            logits_RV = self._forward(io, rows).float()
            best = argmax_ids(logits_RV)
        except Exception as error:  # foreign code; what failed is this batch
            self._fail_batch(io, rows, error)
            return
        self._failed_steps = 0
        sampled = [row for row, request in zip(rows, io.requests_in_batch, strict=True) if request.has_new_token]
        if not all(row.sampler.plain for row in sampled):
            logits_RV = logits_RV.cpu()
        tokens = [self._choose(row, logits_RV[i], best[i]) for i, row in enumerate(sampled)]
        io.output_ids[0, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        failed = {row for row, word in self._said if isinstance(word, EngineError)}
        for row, request in zip(rows, io.requests_in_batch, strict=True):
            # The manager would not keep the blocks of rows that end with this step: a label of one token is a row.
            if row not in failed:
                io.cache.mark_complete_blocks(request.state, request.complete_blocks)
            request.complete_blocks = {}

    def _forward(self, io: Any, rows: list[BatchRow]) -> Tensor:
        """Logits [R, V]."""
        data, cache = io.get_model_kwargs(), io.cache
        pieces = []
        for row, request in zip(rows, io.requests_in_batch, strict=True):
            past = request.state.position_offset - request.query_length
            pieces.append(RowChunk(past, request.query_length, row.loaded))
            if row.queue_s is None:
                row.meet()
                self._cached, self._computed = self._cached + past, self._computed + len(row.ids) - past
        spans = virtual_spans(pieces)
        slots = zip(cache.cache_allocators.values(), data["read_index"], data["write_index"], strict=True)
        plans = [plan_attention(allocator, pieces, read, write, self._lm.dtype) for allocator, read, write in slots]
        ids_Q = data["input_ids"][0]
        embeds_QH = self._lm.embed(only_text_ids(ids_Q, self._lm.geometry.vocab))
        for span in spans:
            if span.loaded.embeddings is not None:
                embeds_QH[span.start : span.stop] = span.loaded.embeddings[span.begin : span.end]
        model: Any = self.model
        states_QH = model.base_model(
            inputs_embeds=embeds_QH[None],
            position_ids=data["position_ids"],
            use_cache=False,
            step=AttentionStep(cache, plans, spans),
        ).last_hidden_state[0]
        count = sum(request.has_new_token for request in io.requests_in_batch)
        return self._lm.logits(states_QH[data["logits_indices"][:count]])

    def _choose(self, row: BatchRow, logits_V: Tensor, best: int) -> int:
        """The next token of a row; whatever goes wrong is that row's failure."""
        try:
            token = row.next(logits_V, best)
        except Exception as error:
            self._said.append((row, _failed(error)))
            return 0
        self._said.append((row, token))
        return token.id

    def _fail_batch(self, io: Any, rows: list[BatchRow], error: Exception) -> None:
        """End the rows of this batch. Raises the error if there is no hope for the next one."""
        self._failed_steps += 1
        if self._failed_steps >= FAILED_STEPS or isinstance(error, torch.AcceleratorError):
            raise error
        self._said += [(row, _failed(error)) for row in rows]
        # What the step left in the cache is not to be kept.
        io.requests_in_batch, io.num_request_in_batch = [], 0


def _failed(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    return EngineError("the job failed", got=f"{type(error).__name__}: {first_line(error)}")
