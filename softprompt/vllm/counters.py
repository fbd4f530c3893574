"""What vLLM says of itself after every step, added up."""

# pyright: reportMissingImports=false

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from softprompt.engine.base import EngineStats


class VllmCounters:
    """The sum over vLLM's engines: there are several with data parallelism."""

    def __init__(self) -> None:
        self._engines: dict[int, EngineStats] = {}
        self._before = EngineStats(0, 0, 0.0)

    def of(self, config: object, engine: int = 0) -> StatLoggerBase:
        """A logger, as vLLM asks for one for each of its engines."""
        return _Logger(self, engine)

    def begin(self) -> None:
        """Count tokens from here on."""
        self._before = self._sum()

    def stats(self) -> EngineStats:
        """What they are busy with now."""
        now, before = self._sum(), self._before
        cached, computed = now.cached_tokens - before.cached_tokens, now.computed_tokens - before.computed_tokens
        return replace(now, cached_tokens=cached, computed_tokens=computed)

    def hear(self, engine: int, heard: Any) -> None:
        """A step of one engine: vLLM's SchedulerStats."""
        old, cache = self._engines.get(engine, EngineStats(0, 0, 0.0)), heard.prefix_cache_stats
        queries, hits = (cache.queries, cache.hits) if cache is not None else (0, 0)
        self._engines[engine] = EngineStats(
            heard.num_running_reqs,
            heard.num_waiting_reqs + heard.num_skipped_waiting_reqs,
            heard.kv_cache_usage,
            old.cached_tokens + hits,
            old.computed_tokens + queries - hits,
        )

    def _sum(self) -> EngineStats:
        all_ = list(self._engines.values())
        usage = max((one.kv_usage for one in all_), default=0.0)
        running, waiting = sum(one.running for one in all_), sum(one.waiting for one in all_)
        cached, computed = sum(one.cached_tokens for one in all_), sum(one.computed_tokens for one in all_)
        return EngineStats(running, waiting, usage, cached, computed)


class _Logger(StatLoggerBase):
    def __init__(self, counters: VllmCounters, engine: int) -> None:
        self._counters, self._engine = counters, engine

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if scheduler_stats is not None:
            self._counters.hear(engine_idx, scheduler_stats)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
