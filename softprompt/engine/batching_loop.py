"""The scheduling loop of the Transformers engine: continuous batching with soft prompts and per-row sampling.

Scheduling, paging and the prefix cache are those of Transformers' manager. Rows are added and cancelled by commands,
which the loop's thread processes in order between two steps. Each step reports its outputs in one call. `submit`,
`cancel`, `close` and `paused` are called from other threads; everything else runs in the loop's thread.

Shapes: Q tokens of a batch, H width, R rows that get a token, V vocabulary.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchProcessor,
    ProtoPretrainedModel,
)
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestState

from softprompt.engine.attention_interface import ATTENTION_NAME, attending, register_paged_attention
from softprompt.engine.base import EngineStats, Job, Token
from softprompt.engine.cache_eviction import register_lru_scheduler
from softprompt.engine.capacity import cache_shape
from softprompt.engine.paged_cache import AttentionStep, RowChunk, plan_attention, virtual_spans
from softprompt.engine.prompt_scores import PromptScorer
from softprompt.engine.sampler import Sampler
from softprompt.engine.transformers_compat import OpenManager, limit_prefix_match, shaped_config, synchronous_io
from softprompt.engine.virtual_tokens import LoadedPrompt, only_text_ids
from softprompt.errors import EngineError, first_line
from softprompt.inference.sampling import argmax_ids
from softprompt.models.frozen_lm import FrozenLM

FAILED_STEPS = 3  # consecutive ones after which the engine has failed


@dataclass(eq=False)
class BatchRow:
    """A job in the batching loop.

    Attributes:
        key: unique among all rows ever, unlike the job's id.
        opening: the id of the text's first token, salted with the tenant.
        deliver: receives each token, or an error as the last output; called by the receiver of the updates.
        queue_s: seconds from creation to its first batch; None before that.
        cached: tokens that were in the prefix cache at its first batch.
    """

    key: str
    job: Job
    loaded: LoadedPrompt
    opening: int
    deliver: Callable[[Token | EngineError], None]
    queue_s: float | None = None
    cached: int = 0

    def __post_init__(self) -> None:
        self.sampler, self.made = Sampler(self.job), time.monotonic()
        self.ids = [*self.loaded.ids, self.opening, *self.job.ids[1:]]
        wanted = self.job.prompt_logprobs
        self.scorer = None if wanted is None else PromptScorer(self.loaded, self.job.ids, wanted)

    def enter_batch(self, cached: int) -> None:
        """Record the time in the queue, and the tokens in the cache, at the row's first batch."""
        self.queue_s, self.cached = time.monotonic() - self.made, cached

    def next(self, logits_V: Tensor, best: int) -> Token:
        """The next token (`Sampler.next`); the first carries the time in the queue. Raises EngineError."""
        token = self.sampler.next(logits_V, best)
        if self.sampler.length > 1:
            return token
        prompt = self.scorer.tokens() if self.scorer is not None else ()
        self.scorer = None
        return replace(token, queue_s=self.queue_s, cached=self.cached, prompt=prompt)


@dataclass(frozen=True)
class RowUpdates:
    """Changes since the last report.

    Attributes:
        outputs: tokens and errors, in order.
        ended: rows that no longer hold cache blocks.
        stats: the current load.
    """

    outputs: list[tuple[BatchRow, Token | EngineError]]
    ended: list[BatchRow]
    stats: EngineStats


class _NullRouter:
    """Discards the manager's own outputs, since tokens are reported as they are sampled."""

    def deliver(self, output: GenerationOutput) -> None: ...

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None: ...

    def fail_and_deliver(self, state: RequestState, error: Exception) -> None: ...


@final
class BatchingLoop(OpenManager):
    """The scheduling loop in its thread.

    Args:
        model: a copy of the model for this loop, whose attention is replaced.
        report: called from the thread with updates.

    Attributes:
        ended: why no row is accepted any more; "" while the loop runs.
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
        self.output_router = _NullRouter()  # type: ignore[assignment]
        self.ended, self._report = "", report
        self._lm, self._model = lm, model
        self._commands: deque[tuple[BatchRow, bool]] = deque()
        self._command_lock = threading.Lock()
        self._rows: dict[str, BatchRow] = {}
        self._outputs: list[tuple[BatchRow, Token | EngineError]] = []
        self._ended_rows: list[BatchRow] = []
        self._failed_steps = 0
        self._cached, self._computed = 0, 0
        self._stats = EngineStats(0, 0, 0.0)

    def switch_to_cb_friendly_attn(self, model: ProtoPretrainedModel, auto_switch_to_flash: bool = True) -> None:
        model.set_attn_implementation(ATTENTION_NAME)

    def prepare(self) -> None:
        """Allocate the cache, so that its errors are raised here and not in the thread."""
        with shaped_config(self._model.config, *cache_shape(self._lm)):
            processor = self.create_processor()
        # By default a step reads at most as many keys as the cache holds, but rows that share a prefix read more.
        io = synchronous_io(processor)
        most = processor.scheduler.max_requests_per_batch * self._lm.geometry.max_positions
        processor.cache.max_tokens_read = most
        io.read_index_storage = io.read_index_storage.new_zeros(len(processor.cache.cache_allocators), most)
        limit_prefix_match(processor.cache, self._reusable)

    def start(self) -> None:
        self.start_thread()

    def submit(self, row: BatchRow) -> None:
        """Add a row. Raises EngineError if the loop has ended."""
        self._command(row, True)

    def cancel(self, row: BatchRow) -> None:
        """End a row and free its blocks; no effect on a row that has ended."""
        with suppress(EngineError):  # if the loop has ended, so have all rows
            self._command(row, False)

    def close(self) -> None:
        """Stop the thread, and with it all rows."""
        self.background_thread_status.request_stop(BackgroundThreadStatus.HARD_STOP, 0)
        self.wake()
        self.join_thread()
        self.batch_processor = None  # and with it the cache

    @contextmanager
    def paused(self) -> Iterator[tuple[ContinuousBatchProcessor | None, dict[str, BatchRow]]]:
        """The processor and the rows, while the loop is paused."""
        if not self.is_running():
            yield self.batch_processor, self._rows
            return
        with self.pause():
            yield self.batch_processor, self._rows

    def _command(self, row: BatchRow, add: bool) -> None:
        with self._command_lock:
            if self.ended:
                raise EngineError(self.ended, where=row.job.id)
            self._commands.append((row, add))
        self.wake()

    def run_loop(self) -> None:
        try:
            super().run_loop()
        finally:
            error = self.background_thread_status.fatal_error
            with self._command_lock:
                self.ended = "the engine was stopped" if error is None else f"the engine failed: {first_line(error)}"
            rows = [*self._rows.values(), *(row for row, add in self._commands if add)]
            self._rows.clear()
            self._commands.clear()
            self._report(RowUpdates([(row, EngineError(self.ended)) for row in rows], rows, EngineStats(0, 0, 0.0)))

    def run_iteration(self, processor: ContinuousBatchProcessor, bootstrapping: bool) -> bool:
        self._process_commands(processor)
        self._report_changes(processor)  # the body may wait
        going = super().run_iteration(processor, bootstrapping)
        for row in [row for row, output in self._outputs if isinstance(output, EngineError) or output.finish]:
            self._end(processor, row)
        self._report_changes(processor)
        return going

    def _process_commands(self, processor: ContinuousBatchProcessor) -> None:
        while self._commands:
            row, add = self._commands.popleft()
            if not add:
                self._end(processor, row)
                continue
            self._rows[row.key] = row
            ends, most = list(row.job.end_ids), row.job.sampling.max_new_tokens
            processor.scheduler.add_waiting_request(
                RequestState(row.key, row.ids, max_new_tokens=most, eos_token_id=ends)
            )

    def _reusable(self, key: str) -> int | None:
        """Tokens of a row that may come from the prefix cache; None for all. Scores need the states of the others."""
        scorer = self._rows[key].scorer if key in self._rows else None
        return None if scorer is None else scorer.first

    def _end(self, processor: ContinuousBatchProcessor, row: BatchRow) -> None:
        """Remove a row and free its blocks; the manager has freed those of finished rows."""
        if self._rows.pop(row.key, None) is not None:
            processor.scheduler.set_request_cancellation(row.key)
            processor.scheduler.clear_cancelled_requests()
            # After a preemption the manager admits no rows until one finishes, which this one may have been.
            processor.scheduler.block_new_requests = False
            self._ended_rows.append(row)

    def _report_changes(self, processor: ContinuousBatchProcessor) -> None:
        """Report if anything has changed."""
        scheduler, cache = processor.scheduler, processor.cache
        free = cache.compute_free_capacity(relative=False)
        allocators = cache.cache_allocators.values()
        free += sum(len(allocator.ledger.cached_blocks) * allocator.bytes_per_block for allocator in allocators)
        usage = 1 - free / (cache.num_sectors * cache.bytes_per_sector)
        running, waiting = len(scheduler.active_requests), len(scheduler.waiting_requests)
        stats = EngineStats(running, waiting, usage, self._cached, self._computed)
        if self._outputs or self._ended_rows or stats != self._stats:
            updates = RowUpdates(self._outputs, self._ended_rows, stats)
            self._outputs, self._ended_rows = [], []
            self._stats = stats
            self._report(updates)

    @torch.inference_mode()
    def run_step(self) -> None:
        assert self.batch_processor is not None
        io = synchronous_io(self.batch_processor)
        rows = [self._rows[request.state.request_id] for request in io.requests_in_batch]
        try:
            logits_RV = self._forward(io, rows).float()
            best = argmax_ids(logits_RV)
        except Exception as error:  # of the model's code; only this batch has failed
            self._fail_batch(io, rows, error)
            return
        self._failed_steps = 0
        sampled = [row for row, request in zip(rows, io.requests_in_batch, strict=True) if request.has_new_token]
        if not all(row.sampler.plain for row in sampled):
            logits_RV = logits_RV.cpu()
        tokens = [self._choose(row, logits_RV[i], best[i]) for i, row in enumerate(sampled)]
        io.output_ids[0, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        failed = {row for row, output in self._outputs if isinstance(output, EngineError)}
        for row, request in zip(rows, io.requests_in_batch, strict=True):
            # The manager would not cache the blocks of rows that end with this step, such as answers of one token.
            if row not in failed:
                io.cache.mark_complete_blocks(request.state, request.complete_blocks)
            request.complete_blocks = {}

    def _forward(self, io: ContinuousBatchingIOs, rows: list[BatchRow]) -> Tensor:
        """Logits [R, V]."""
        data, cache = io.get_model_kwargs(), io.cache
        pieces = []
        for row, request in zip(rows, io.requests_in_batch, strict=True):
            past = request.state.position_offset - request.query_length
            pieces.append(RowChunk(past, request.query_length, row.loaded))
            if row.queue_s is None:
                row.enter_batch(past)
                self._cached, self._computed = self._cached + past, self._computed + len(row.ids) - past
        spans = virtual_spans(pieces)
        slots = zip(cache.cache_allocators.values(), data["read_index"], data["write_index"], strict=True)
        plans = [plan_attention(allocator, pieces, read, write, self._lm.dtype) for allocator, read, write in slots]
        ids_Q = data["input_ids"][0]
        embeds_QH = self._lm.embed(only_text_ids(ids_Q, self._lm.geometry.vocab))
        for span in spans:
            if span.loaded.embeddings is not None:
                embeds_QH[span.start : span.stop] = span.loaded.embeddings[span.begin : span.end]
        with attending(AttentionStep(cache, plans, spans, cache_shape(self._lm))):
            states_QH = self._model.base_model(
                inputs_embeds=embeds_QH[None], position_ids=data["position_ids"], use_cache=False
            ).last_hidden_state[0]
        for row, piece, row_states in zip(
            rows, pieces, states_QH.split([piece.length for piece in pieces]), strict=True
        ):
            if row.scorer is not None:
                row.scorer.add(self._lm, piece.past, row_states)
        count = sum(request.has_new_token for request in io.requests_in_batch)
        return self._lm.logits(states_QH[data["logits_indices"][:count]])

    def _choose(self, row: BatchRow, logits_V: Tensor, best: int) -> int:
        """The next token of a row; an error fails that row only."""
        try:
            token = row.next(logits_V, best)
        except Exception as error:
            self._outputs.append((row, _failed(error)))
            return 0
        self._outputs.append((row, token))
        return token.id

    def _fail_batch(self, io: ContinuousBatchingIOs, rows: list[BatchRow], error: Exception) -> None:
        """Fail the rows of this batch. Raises the error if the next batch would fail, too."""
        self._failed_steps += 1
        if self._failed_steps >= FAILED_STEPS or isinstance(error, torch.AcceleratorError):
            raise error
        self._outputs += [(row, _failed(error)) for row in rows]
        # Keep nothing that the failed step wrote to the cache.
        io.requests_in_batch, io.num_request_in_batch = [], 0


def _failed(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    return EngineError("the job failed", got=f"{type(error).__name__}: {first_line(error)}")
