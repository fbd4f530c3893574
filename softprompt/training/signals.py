"""Ctrl-C and SIGTERM handling: a loop checks for them between two steps, instead of being interrupted in one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None  # as signal.signal takes and returns

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """A context that stores the first signal in `received`; a second one raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._previous = {number: signal.signal(number, self._store) for number in _SIGNALS}
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
    """SIGTERM in code that does not check an `Interrupt`."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A context in which SIGTERM raises `Terminated`, so that cleanup code runs as it does after Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
