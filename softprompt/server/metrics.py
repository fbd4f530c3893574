"""Prometheus metrics under vLLM's names with the prefix `softprompt_`. Label values never come from a client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from softprompt.engine.base import EngineStats

PREFIX = "softprompt_"
# vLLM's buckets, in seconds.
_FIRST_TOKEN_BUCKETS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
_INTER_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_REQUEST_BUCKETS = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)


@dataclass(frozen=True)
class PromptCacheStats:
    """Counts of the prompt cache: prompts loaded now, and hits, misses and evictions so far."""

    loaded: int
    hits: int
    misses: int
    evictions: int


class ServerMetrics:
    """The server's counters and histograms; gauges read the engine and the prompt cache when scraped.

    Args:
        stats: the engine's load.
        loads: the prompt cache's counts.
    """

    def __init__(self, stats: Callable[[], EngineStats], loads: Callable[[], PromptCacheStats]) -> None:
        self.registry = CollectorRegistry()
        self.first_token = self._seconds(
            "time_to_first_token_seconds", "From request to first token.", _FIRST_TOKEN_BUCKETS
        )
        self.between_tokens = self._seconds("inter_token_latency_seconds", "From token to token.", _INTER_TOKEN_BUCKETS)
        self.queue = self._seconds(
            "request_queue_time_seconds", "From request to batch, in the engine.", _REQUEST_BUCKETS
        )
        self.whole_request = self._seconds(
            "e2e_request_latency_seconds", "From request to last token.", _REQUEST_BUCKETS
        )
        self.prompt_tokens = self._count("prompt_tokens", "Tokens of texts; virtual ones do not count.")
        self.generation_tokens = self._count("generation_tokens", "Tokens of answers.")
        self.success = self._count("request_success", "Answers by how they ended.", "finished_reason")
        self.http = self._count("http_requests", "Replies by route and status.", "route", "status")
        self.registry.register(_Busy(stats, loads))

    def watch_jobs(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Also show how many fine-tuning jobs there are, by status, by which workers can be scaled."""
        self.registry.register(_Jobs(counts))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _count(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, help_text, labels, registry=self.registry)

    def _seconds(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, help_text, buckets=buckets, registry=self.registry)


class _Busy(Collector):
    def __init__(self, stats: Callable[[], EngineStats], loads: Callable[[], PromptCacheStats]) -> None:
        self._stats, self._loads = stats, loads

    def collect(self) -> Iterator[Metric]:
        stats, loads = self._stats(), self._loads()
        gauges = {
            "num_requests_running": ("Answers in the batch.", stats.running),
            "num_requests_waiting": ("Answers waiting for it.", stats.waiting),
            "kv_cache_usage_perc": ("Share of the cache in use; 1 is all.", stats.kv_usage),
            "prompts_loaded": ("Soft prompts in the engine.", loads.loaded),
        }
        counts = {
            "prefix_cache_hits": ("Tokens found in the prefix cache.", stats.cached_tokens),
            "prefix_cache_queries": ("Tokens looked up there.", stats.cached_tokens + stats.computed_tokens),
            "prompt_cache_hits": ("Requests whose soft prompt was loaded.", loads.hits),
            "prompt_cache_misses": ("Requests whose soft prompt had to be loaded.", loads.misses),
            "prompt_cache_evictions": ("Soft prompts evicted.", loads.evictions),
        }
        for name, (help_text, value) in gauges.items():
            yield GaugeMetricFamily(PREFIX + name, help_text, value=value)
        for name, (help_text, value) in counts.items():
            yield CounterMetricFamily(PREFIX + name, help_text, value=value)


class _Jobs(Collector):
    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        for status, count in self._counts().items():
            yield GaugeMetricFamily(f"{PREFIX}num_jobs_{status}", f"Fine-tuning jobs that are {status}.", value=count)
