"""Runs cases in order of value until the time is up, and writes the report after each.

The report names every case at every moment: done, failed, skipped, cut off, running or not reached, so that a run
that is killed is as good as its last finished case.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.registry import Case, Skip
from benchmarks.machine import facts
from softprompt.errors import MissingExtraError, first_line, is_out_of_memory
from softprompt.files import write_file

REPORT = "gpu.json"
PATIENCE, GRACE = 4.0, 20.0  # a case may take so many times its estimate, and so many seconds more


class CutOff(BaseException):
    """The time of a case, or of the whole run, is up. No Exception, so that nothing on the way swallows it."""


def run_cases(
    bench: Bench, cases: Sequence[Case], seconds: float, clock: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """Run what fits in the time, and return the report, which is also in the folder `bench.out`."""
    end = clock() + seconds
    entries: dict[str, dict[str, Any]] = {one.name: {"status": "not reached"} for one in cases}
    report = {"benchmark": "gpu", "device": bench.device, "tiny": bench.tiny, "machine": facts(), "cases": entries}
    bench.out.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        text = json.dumps(_finite(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_file(bench.out / REPORT, text.encode(), overwrite=True)

    def note(entry: dict[str, Any]) -> None:
        entry["partial"] = bench.partial
        write()

    write()
    for one in cases:
        left = end - clock()
        if left < one.seconds:
            reason = f"takes about {one.seconds:.0f} s, {max(left, 0):.0f} were left"
            entries[one.name] = {"status": "skipped", "reason": reason}
            write()
            continue
        entries[one.name] = {"status": "running"}
        write()
        bench.partial, begin = {}, clock()
        bench.on_note = partial(note, entries[one.name])
        entry, stop = _outcome(bench, one, min(left, PATIENCE * one.seconds + GRACE))
        if entry["status"] != "done" and bench.partial:
            entry["partial"] = bench.partial
        entries[one.name] = entry | {"seconds": round(clock() - begin, 2), "estimate": one.seconds}
        write()
        print(line_of(one.name, entries[one.name]), flush=True)
        if stop:
            break
    return report


def _outcome(bench: Bench, one: Case, limit: float) -> tuple[dict[str, Any], bool]:
    """The entry of a case, and whether no other one can run after it."""
    try:
        with _alarm(limit):
            return {"status": "done", "result": one.run(bench)}, False
    except Skip as reason:
        return {"status": "skipped", "reason": str(reason)}, False
    except (MissingExtraError, ModuleNotFoundError) as error:
        return {"status": "skipped", "reason": f"missing package: {first_line(error)}"}, False
    except CutOff as reason:
        bench.forget()
        return {"status": "cut off", "reason": str(reason)}, "terminated" in str(reason)
    except Exception as error:
        kind = "out of memory" if is_out_of_memory(error) else type(error).__name__
        trace = traceback.format_exc().splitlines()[-12:]
        error.__traceback__ = None  # it holds the tensors of the case
        bench.forget()
        entry = {"status": "failed", "reason": f"{kind}: {first_line(error)}", "trace": trace}
        if fault := _fault(bench):
            entry["reason"] += f"; the device is lost ({fault})"
        return entry, bool(fault)


def _finite(value: Any) -> Any:
    """The same with "nan" and "inf" as texts, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _fault(bench: Bench) -> str:
    """Why the device no longer computes; "" if it does. A fault in a kernel stays for the life of the process."""
    try:
        torch.ones(2, device=bench.device).sum().item()
    except RuntimeError as error:
        return first_line(error)
    return ""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise CutOff in this thread after so many seconds, or when the process is told to end."""

    def ring(number: int, frame: object) -> None:
        late = number == signal.SIGALRM
        raise CutOff(f"not done after {seconds:.0f} s" if late else f"terminated by {signal.Signals(number).name}")

    numbers = (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, ring) for number in numbers}
    timer = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        for number, handler in before.items():
            signal.signal(number, handler)


def line_of(name: str, entry: dict[str, Any]) -> str:
    """A case as a line of the table."""
    result = entry.get("result", {})
    told = entry.get("reason") or result.get("told") or ""
    if "holds" in result:
        told = f"{'holds' if result['holds'] else 'DOES NOT HOLD'}  {told}"
    return f"{entry['status']:<8} {entry.get('seconds', 0):>6.1f} s  {name:<44} {told}"


def exit_code(report: dict[str, Any]) -> int:
    """1 if a case failed, or a check does not hold."""
    entries = report["cases"].values()
    bad = [one for one in entries if one["status"] == "failed" or one.get("result", {}).get("holds") is False]
    if bad:
        print(f"{len(bad)} of {len(entries)} cases failed or do not hold", file=sys.stderr)
    return int(bool(bad))
