"""Sums the statistics that vLLM reports after every step."""

# pyright: reportMissingImports=false

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vllm.v1.metrics.loggers import StatLoggerBase

from softprompt.engine.base import EngineStats

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import SchedulerStats


class VllmCounters:
    """Statistics summed over vLLM's engines, of which data parallelism has several."""

    def __init__(self) -> None:
        self._engines: dict[int, EngineStats] = {}
        self._before = EngineStats(0, 0, 0.0)

    def of(self, config: object, engine: int = 0) -> StatLoggerBase:
        """A logger for one of vLLM's engines."""
        return _Logger(self, engine)

    def begin(self) -> None:
        """Count tokens from now on."""
        self._before = self._sum()

    def stats(self) -> EngineStats:
        """The current load, and tokens since `begin`."""
        now, before = self._sum(), self._before
        cached, computed = now.cached_tokens - before.cached_tokens, now.computed_tokens - before.computed_tokens
        return replace(now, cached_tokens=cached, computed_tokens=computed)

    def update(self, engine: int, step: SchedulerStats) -> None:
        """Add a step of one engine."""
        old, cache = self._engines.get(engine, EngineStats(0, 0, 0.0)), step.prefix_cache_stats
        queries, hits = (cache.queries, cache.hits) if cache is not None else (0, 0)
        self._engines[engine] = EngineStats(
            step.num_running_reqs,
            step.num_waiting_reqs + step.num_skipped_waiting_reqs,
            step.kv_cache_usage,
            old.cached_tokens + hits,
            old.computed_tokens + queries - hits,
        )

    def _sum(self) -> EngineStats:
        engines = list(self._engines.values())
        return EngineStats(
            running=sum(stats.running for stats in engines),
            waiting=sum(stats.waiting for stats in engines),
            kv_usage=max((stats.kv_usage for stats in engines), default=0.0),
            cached_tokens=sum(stats.cached_tokens for stats in engines),
            computed_tokens=sum(stats.computed_tokens for stats in engines),
        )


class _Logger(StatLoggerBase):
    def __init__(self, counters: VllmCounters, engine: int) -> None:
        self._counters, self._engine = counters, engine

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: object,
        mm_cache_stats: object = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self._counters.update(engine_idx, scheduler_stats)

    def log_engine_initialized(self) -> None:
        """Nothing to log."""
