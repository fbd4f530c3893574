"""A pytest plugin that sorts failures by kind, with their reasons, and writes them down while the suite runs.

    python -m pytest -p tests.support.failure_kinds --failures-out kinds.json tests/laws

The JSON is complete at every moment (written aside and renamed), so that a run that is cut off says what it saw.
`scripts/test-gpu` runs it; docs/gpu.md says what the kinds mean.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SECONDS_BETWEEN_FILES = 1.0  # written at most this often, and in the end
NUMBER = r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?"
_VALUE = rf"(?:tensor\()?({NUMBER})[^()<>=]*\)?"
_COMPARED = re.compile(rf"assert {_VALUE} <=? (?:\(?({NUMBER}) \* )?{_VALUE}")
_ALLOWED = re.compile(
    rf"(?:Absolute|Greatest absolute) difference: ({NUMBER}|nan|inf)[^(]*(?:\(\d[^)]*\) )?\(up to ({NUMBER}) allowed\)"
)
_APPROX = re.compile(rf"assert ({NUMBER}) == ({NUMBER}) ± ({NUMBER})")
_SETS = re.compile(rf"Obtained: ({NUMBER})\s+(?:E\s+)?Expected: ({NUMBER}) ± ({NUMBER})")

# In this order: the first whose words are in the text.
WORDS = {
    "out of memory": ("out of memory",),
    "missing package": (
        "ModuleNotFoundError",
        "ImportError",
        "MissingExtraError",
        "PackageNotFoundError",
        "is not installed",
        "requires the `",
    ),
    "device": (
        "Expected all tensors to be on the same device",
        "but found at least two devices",
        "device type tensor to numpy",
        "Expected a 'cpu' device type for generator",
        "Expected a 'cuda' device type for generator",
        "should be either on cpu or on the same device",
        "is on cpu, but expected",
        "is on cuda:0, but expected",
        "not on the expected device",
        "device(type='cuda'",
        "doesn't match the desired device",
        "The values for attribute 'device' do not match",
    ),
    "dtype": (
        "to have the same dtype",
        "expected scalar type",
        "must have the same dtype",
        "should be the same dtype",
        "unsupported ScalarType BFloat16",
        "The values for attribute 'dtype' do not match",
    ),
    "unsupported operation": (
        "NotImplementedError",
        "not implemented for",
        "is not supported",
        "does not support",
        "no kernel image",
        "UnsupportedModelError",
        "operation not permitted when stream is capturing",
    ),
    "device fault": ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "device-side assert"),
    "tolerance": ("are not close", "±"),
}


def measured(text: str) -> dict[str, float] | None:
    """The difference and the bound of a comparison of numbers that failed; None if the text shows none."""
    if found := _ALLOWED.search(text):
        return {"difference": float(found[1]), "bound": float(found[2])}
    if found := _APPROX.search(text) or _SETS.search(text):
        return {"difference": abs(float(found[1]) - float(found[2])), "bound": float(found[3])}
    if found := _COMPARED.search(text):
        return {"difference": float(found[1]), "bound": float(found[2] or 1) * float(found[3])}
    return None


def kind_of(text: str, place: str) -> str:
    """The kind of a failure.

    Args:
        text: what pytest shows of it.
        place: the innermost file of this repository in its traceback.
    """
    kind = next((kind for kind, words in WORDS.items() if any(word in text for word in words)), "")
    if kind in ("device", "dtype"):
        ours = place.startswith("softprompt/")
        wanted = "the CPU" if kind == "device" else "float32"
        return f"{kind}s mixed in the package" if ours else f"test assumes {wanted}"
    return kind or ("tolerance" if measured(text) else "other")


def place_of(longrepr: Any) -> str:
    """File and line of this repository in which a failure arose, as deep in the traceback as possible."""
    trace = getattr(longrepr, "reprtraceback", None)
    for entry in reversed(trace.reprentries if trace else []):
        where = getattr(entry, "reprfileloc", None)
        if where and (found := re.search(r"(?:^|/)((?:softprompt|tests|benchmarks)/.*)", str(where.path))):
            return f"{found[1]}:{where.lineno}"
    return ""


def reason_of(text: str) -> str:
    """The lines of the error itself, at most six, in short."""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return "\n".join(line[:240] for line in (lines or text.strip().splitlines()[-1:])[:6])


class FailureKinds:
    """Collects reports; under pytest-xdist in the process that hands out the tests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.about: dict[str, Any] = {
            "device": os.environ.get("SOFTPROMPT_TEST_DEVICE", "cpu"),
            "dtype": os.environ.get("SOFTPROMPT_TEST_DTYPE", "float32"),
        }
        self.outcomes: Counter[str] = Counter()
        self.files: dict[str, Counter[str]] = {}
        self.failures: list[dict[str, Any]] = []
        self.skipped: Counter[str] = Counter()
        self.written = -SECONDS_BETWEEN_FILES

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._note(report.nodeid, report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._note(report.nodeid, report)

    def pytest_sessionfinish(self) -> None:
        self.write(complete=True)

    def _note(self, name: str, report: Any) -> None:
        file = name.split("::")[0]
        self.outcomes[report.outcome] += 1
        self.files.setdefault(file, Counter())[report.outcome] += 1
        if report.skipped:
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            self.skipped[str(text).removeprefix("Skipped: ")[:200]] += 1
        elif report.failed:
            text, place = report.longreprtext, place_of(report.longrepr)
            kind = kind_of(text, place)
            entry = {"test": name, "kind": kind, "place": place, "reason": reason_of(text)}
            self.failures.append(entry | ((kind == "tolerance" and measured(text)) or {}))
        if time.monotonic() - self.written >= SECONDS_BETWEEN_FILES:
            self.write(complete=False)

    def write(self, *, complete: bool) -> None:
        """Everything so far, all or nothing."""
        kinds = Counter(failure["kind"] for failure in self.failures)
        found = self.about | {
            "complete": complete,
            "outcomes": self.outcomes,
            "kinds": dict(kinds.most_common()),
            "files": self.files,
            "failures": self.failures,
            "skipped": dict(self.skipped.most_common()),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(f".{self.path.name}.tmp")
        aside.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, self.path)
        self.written = time.monotonic()


def table(path: Path) -> Iterator[str]:
    """The report as lines: a line a kind, with the most frequent reason and one test of each."""
    found = json.loads(path.read_text(encoding="utf-8"))
    state = "" if found["complete"] else ", cut off"
    counts = ", ".join(f"{n} {name}" for name, n in found["outcomes"].items())
    yield f"{found['device']}, {found['dtype']}{state}: {counts or 'no test'}"
    for kind, count in found["kinds"].items():
        own = [failure for failure in found["failures"] if failure["kind"] == kind]
        yield f"  {count:>5}  {kind}"
        reasons = Counter((one["reason"].splitlines() or [""])[0][:100] for one in own)
        for reason, times in reasons.most_common(3):
            first = next(one for one in own if (one["reason"].splitlines() or [""])[0][:100] == reason)
            yield f"         {times:>4} × {reason}  ({first['test']}, {first['place']})"
        worst = max((one for one in own if "bound" in one), key=lambda one: one["difference"], default=None)
        if worst:
            yield f"         largest difference {worst['difference']:.2g} (bound {worst['bound']:.2g}): {worst['test']}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--failures-out", type=Path, help="a JSON file with every failure by kind")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--failures-out")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailureKinds(path), "failure-kinds-report")


if __name__ == "__main__":
    import sys

    print("\n".join(table(Path(sys.argv[1]))))  # noqa: T201
