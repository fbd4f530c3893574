"""Inspections on a worker: whatever happens to workers, each is made once; what is deleted is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from softprompt.errors import ConfigError, LeaseLostError, NotFoundError
from softprompt.jobs.inspection_records import InspectionInput, InspectionRecord, InspectionResult, NewInspection
from softprompt.jobs.inspections import MAX_ATTEMPTS, Inspections
from softprompt.jobs.inspector import InspectionRunner, Inspector
from softprompt.jobs.queue import expire_leases
from softprompt.jobs.records import JobBase
from softprompt.jobs.store import JobStore
from softprompt.models.frozen_lm import FrozenLM
from tests.jobs.conftest import conversation_rows, put
from tests.support.tiny import tiny_lm

BASE = JobBase("tiny", "tiny", "/somewhere/prompts")
RESULT = InspectionResult("<p>", "{}")
LEASE_S = 5.0


def new(**changes: object) -> NewInspection:
    return replace(NewInspection("a", "tiny", "ft:tiny:bot:1", "ft-bot-1", None, (), 8), **changes)


def runner(store: JobStore, inspect: Inspector, is_over: Callable[[], bool] = lambda: False) -> InspectionRunner:
    return InspectionRunner(Inspections(store), tiny_lm("llama"), BASE, "w", LEASE_S, inspect, is_over)


def claimed(store: JobStore, worker: str = "w") -> InspectionRecord:
    record = Inspections(store).claim("tiny", worker, LEASE_S)
    assert record is not None
    return record


def test_one_after_the_other(store: JobStore) -> None:
    """The oldest first, with its rows, and nothing of another base model."""
    inspections, seen = Inspections(store), list[InspectionInput]()
    file = put(store, conversation_rows(2))
    first = inspections.create(new(file=file, sections=("nearest",)))
    second = inspections.create(new(prompt="/operators/talk"))
    inspections.create(new(base="other"))
    store.files.delete(file, "a")  # what was asked for keeps its rows

    def inspect(lm: FrozenLM, wanted: InspectionInput, begins: Callable[[str], None]) -> InspectionResult:
        seen.append(wanted)
        assert wanted.rows is None or wanted.rows.read_bytes() == conversation_rows(2)
        begins("nearest")
        assert inspections.get(first.id if len(seen) == 1 else second.id, "a").section == "nearest"
        return RESULT

    made = runner(store, inspect)
    assert made.run_next() and made.run_next() and not made.run_next()
    assert [str(wanted.folder) for wanted in seen] == ["/somewhere/prompts/ft-bot-1", "/operators/talk"]
    assert [wanted.sections for wanted in seen] == [("nearest",), ()]
    assert inspections.result(first.id, "a") == RESULT and inspections.get(first.id, "a").status == "succeeded"
    with pytest.raises(NotFoundError):
        inspections.result(first.id, "b")
    assert not list(store.files.contents.folder.rglob(first.sha256)), "nobody needs the rows any more"


def test_a_mistake_is_told_without_paths(store: JobStore) -> None:
    inspections = Inspections(store)
    record = inspections.create(new())

    def inspect(lm: FrozenLM, wanted: InspectionInput, begins: Callable[[str], None]) -> InspectionResult:
        raise ConfigError("no such thing", expected=f"{wanted.folder}", got="x")

    assert runner(store, inspect).run_next()
    failed = inspections.get(record.id, "a")
    assert failed.status == "failed" and failed.error is not None
    assert failed.error.message == "no such thing; expected ft-bot-1; got x"
    assert inspections.result(record.id, "a") is None


def test_a_worker_that_stops_gives_it_back(store: JobStore) -> None:
    inspections = Inspections(store)
    record = inspections.create(new())

    def inspect(lm: FrozenLM, wanted: InspectionInput, begins: Callable[[str], None]) -> InspectionResult:
        begins("nearest")
        return RESULT

    assert runner(store, inspect, is_over=lambda: True).run_next()
    waiting = inspections.get(record.id, "a")
    assert (waiting.status, waiting.attempt) == ("queued", 0)


def test_one_that_is_deleted_is_left(store: JobStore) -> None:
    inspections = Inspections(store)
    record = inspections.create(new())

    def inspect(lm: FrozenLM, wanted: InspectionInput, begins: Callable[[str], None]) -> InspectionResult:
        inspections.delete(record.id, "a")
        begins("nearest")
        raise AssertionError("it went on")

    assert runner(store, inspect).run_next()
    assert not inspections.list(None).items


def test_workers_that_die(store: JobStore) -> None:
    """Another one takes it when the lease is over, the dead one writes nothing more, and it ends some time."""
    inspections, now = Inspections(store), [1000.0]
    store.now = lambda: now[0]
    record = inspections.create(new())
    first = claimed(store, "one")
    assert inspections.claim("tiny", "two", LEASE_S) is None
    now[0] += LEASE_S / 2
    inspections.renew(first, LEASE_S)
    now[0] += LEASE_S * 0.9
    assert inspections.claim("tiny", "two", LEASE_S) is None, "it was renewed"
    now[0] += LEASE_S
    second = claimed(store, "two")
    for late in (lambda: inspections.succeed(first, RESULT), lambda: inspections.renew(first, LEASE_S)):
        with pytest.raises(LeaseLostError):
            late()
    expire_leases(store, "two")
    assert claimed(store, "three").attempt == MAX_ATTEMPTS == second.attempt + 1
    expire_leases(store, "three")
    assert inspections.claim("tiny", "four", LEASE_S) is None
    failed = inspections.get(record.id, "a")
    assert failed.status == "failed" and failed.error is not None and failed.error.code == "worker_lost"
