"""Ctrl-C and SIGTERM become a question; the handlers of others come back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from softprompt.training.signals import STOP_SIGNALS, Interrupt, Terminated, terminable


@pytest.fixture(autouse=True)
def caught() -> Iterator[list[int]]:
    """Handlers of the test's own: what `Interrupt` lets through ends up in the list instead of ending pytest."""
    got: list[int] = []
    before = {number: signal.signal(number, lambda number, _: got.append(number)) for number in STOP_SIGNALS}
    yield got
    for number, handler in before.items():
        signal.signal(number, handler)


def test_both_signals_are_watched() -> None:
    assert set(STOP_SIGNALS) == {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_remembered_and_stops_nothing(number: signal.Signals, caught: list[int]) -> None:
    with Interrupt() as interrupt:
        assert interrupt.received is None
        signal.raise_signal(number)
        assert interrupt.received is number
    assert interrupt.received is number
    assert caught == []


@pytest.mark.parametrize("second", STOP_SIGNALS)
@pytest.mark.parametrize("first", STOP_SIGNALS)
def test_a_second_signal_interrupts_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with Interrupt() as interrupt:
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
        assert interrupt.received is first


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("failing", [False, True])
def test_the_handlers_before_come_back(number: signal.Signals, failing: bool, caught: list[int]) -> None:
    before = [signal.getsignal(one) for one in STOP_SIGNALS]
    interrupt = Interrupt()
    try:
        with interrupt:
            assert all(signal.getsignal(one) not in before for one in STOP_SIGNALS)
            if failing:
                raise ValueError
    except ValueError:
        assert failing
    assert [signal.getsignal(one) for one in STOP_SIGNALS] == before
    signal.raise_signal(number)
    assert caught == [number]
    assert interrupt.received is None


def test_without_signals_an_error_passes() -> None:
    with pytest.raises(ZeroDivisionError), Interrupt():
        _ = 1 / 0


def test_in_another_thread_it_does_nothing(caught: list[int]) -> None:
    """Python lets only the main thread set handlers; a run in a thread must work all the same."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with Interrupt():
                entered.set()
                leave.wait(10)
        except BaseException as error:
            failed.append(error)
            entered.set()

    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(10)
    signal.raise_signal(signal.SIGINT)
    leave.set()
    thread.join(10)
    assert failed == []
    assert caught == [signal.SIGINT]


def test_sigterm_is_an_exception_while_it_is_terminable(caught: list[int]) -> None:
    """Which is a kind of Ctrl-C; the handler before comes back, and an `Interrupt` inside asks as always."""
    with pytest.raises(Terminated), terminable():
        signal.raise_signal(signal.SIGTERM)
    assert issubclass(Terminated, KeyboardInterrupt) and caught == []
    with terminable(), Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.received is signal.SIGTERM
    signal.raise_signal(signal.SIGTERM)
    assert caught == [signal.SIGTERM]
