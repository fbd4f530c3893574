"""Ctrl-C and SIGTERM handling: a loop checks for them between two steps, instead of being interrupted in one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None  # as signal.signal takes and returns

# SIGUSR1 is another number than a supervisor's SIGTERM, so that a process may stop its own run (`jobs.monitor`) without
# swallowing that one. Batch systems send it before the end of their time.
OWN_STOP: signal.Signals = getattr(signal, "SIGUSR1", signal.SIGTERM)
_STOPS = tuple(dict.fromkeys((signal.SIGTERM, OWN_STOP)))
STOP_SIGNALS = (signal.SIGINT, *_STOPS)


class Interrupt:
    """A context that stores the first signal in `received`; a second one raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._previous = {number: signal.signal(number, self._store) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _store(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGUSR1 in code that does not check an `Interrupt`."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A context in which SIGTERM and SIGUSR1 raise `Terminated`, once, so that cleanup code runs as after Ctrl-C."""
    received = list[int]()

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:  # a second one would end the cleanup
            raise Terminated

    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield
        return
    previous = {number: signal.signal(number, stop) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
