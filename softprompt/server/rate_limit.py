"""Rate limits: requests per time and concurrent requests of each key, and concurrent answers of all keys."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from softprompt.errors import ConfigError
from softprompt.server.api_keys import Caller
from softprompt.server.error_responses import ApiError, stopping
from softprompt.server.limits import Limits

_SHARE = 4  # one request takes up at most a fourth of the queue


class RateLimit:
    """Counts requests and refuses those over the limits.

    Args:
        rate: requests of one key per time, such as "600/minute"; "" is unlimited.

    Attributes:
        draining: whether all new requests are refused, since the server is stopping.
        jobs: answers that run or wait.

    Raises ConfigError for an invalid rate.
    """

    def __init__(self, limits: Limits, rate: str = "") -> None:
        self.limits, self._rate = limits, _parsed(rate)
        self._limiter = FixedWindowRateLimiter(MemoryStorage()) if self._rate else None  # the storage starts a thread
        self.draining, self.jobs = False, 0
        self._requests = Counter[str]()

    def count(self, caller: Caller) -> None:
        """Count a new request. Raises ApiError 429 over the rate, 503 while the server is stopping."""
        if self.draining:
            raise stopping()
        if self._rate is None or self._limiter is None or self._limiter.hit(self._rate, caller.id):
            return
        reset = self._limiter.get_window_stats(self._rate, caller.id).reset_time
        wait = max(1, math.ceil(reset - time.time()))
        raise ApiError(429, f"More requests than {self._rate}.", "rate_limit_exceeded", retry_after_s=wait)

    @contextlib.contextmanager
    def request(self, caller: Caller) -> Iterator[None]:
        """Count a request as running. Raises ApiError 429 if the caller has too many."""
        if self._requests[caller.id] >= self.limits.key_requests:
            raise ApiError(429, "Too many concurrent requests for this key.", "concurrency_exceeded", retry_after_s=1)
        self._requests[caller.id] += 1
        try:
            yield
        finally:
            self._requests[caller.id] -= 1

    @contextlib.contextmanager
    def answers(self, count: int) -> Iterator[None]:
        """Count this many answers as running or waiting. Raises ApiError 429 if the queue is full."""
        if self.jobs + count > self.limits.jobs:
            raise ApiError(429, "The queue of the server is full.", "queue_full", retry_after_s=1)
        self.jobs += count
        try:
            yield
        finally:
            self.jobs -= count

    def turn(self, count: int, together: int) -> int:
        """How many of a request's answers run or wait at a time; the others follow as these end.

        Args:
            count: all of them.
            together: answers to one text.
        """
        return min(count, max(together, self.limits.jobs // _SHARE, 1))

    @property
    def requests(self) -> int:
        """Number of running requests."""
        return self._requests.total()


def _parsed(rate: str) -> RateLimitItem | None:
    try:
        return parse(rate) if rate else None
    except ValueError as error:
        raise ConfigError("not a rate", where="--rate", expected="such as 600/minute", got=rate) from error
