"""What runs on a GPU, tried on the CPU: the benchmark on tiny models, reports that are cut off, sorted failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import oracle, runner
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.registry import Case, Skip, in_order
from benchmarks.gpu.runner import REPORT, exit_code, run_cases
from tests import conftest
from tests.support.failure_kinds import table

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT and bitsandbytes, as the command does


def report_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("cpu", True, tmp_path)


@pytest.mark.cpu_only("it is the dry run of what a GPU does")
def test_every_case_comes_to_a_result(bench: Bench) -> None:
    (bench.out / "tests-float32.json").write_text("{}")  # the laws are tests of this suite anyway
    # Of the measures of three shapes, which are all two layers here, those of one.
    cases = [one for one in in_order() if one.rank < 10 or not ("8b" in one.name or "135m" in one.name)]
    found = run_cases(bench, cases, 600)
    assert found["cases"] == report_in(bench.out)["cases"], "what was returned is what was written"
    states = {name: (one["status"], one.get("reason", "")) for name, one in found["cases"].items()}
    skipped = {name: reason for name, (state, reason) in states.items() if state == "skipped"}
    assert skipped == {"laws of the suite": "scripts/test-gpu has run them: tests-float32.json"}
    assert {name: told for name, told in states.items() if told[0] not in ("done", "skipped")} == {}
    results = {name: one["result"] for name, one in found["cases"].items() if "result" in one}
    assert {name: one["told"] for name, one in results.items() if one.get("holds") is False} == {}
    assert exit_code(found) == 0
    steps = results["training step llama-3.2-1b"]["sizes"]
    assert [(one["virtual"], one["rows"], one["length"]) for one in steps] == [
        (10, 2, 24),
        (10, 8, 24),
        (2, 2, 24),
        (2, 8, 24),
        (10, 2, 24),
    ]
    assert all(one["grad_rel_err"] < 0.2 and one["floor_fraction"] > 0 for one in steps)
    assert all(len(results[f"profile of a step {shape}"]["ours"]["top"]) == 10 for shape in ("llama-3.2-1b",))
    assert set(results["distillation"]["phases"]) == {"study", "start", "training", "all"}
    assert results["serving 256"]["tokens_per_second"].keys() == {"many prompts", "one prompt", "no prompt"}


def test_a_check_fails_where_the_package_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A percent off in the hidden states, and in the loss."""
    right, right_losses = oracle.packed_hidden_states, oracle.token_losses

    def wrong(*given: Any) -> Tensor:
        states = right(*given)
        return states + 0.01 * states.norm() / states.numel() ** 0.5 * torch.randn_like(states)

    def wrong_losses(*given: Any) -> Tensor:
        return right_losses(*given) * torch.tensor(1.01)

    monkeypatch.setattr(oracle, "packed_hidden_states", wrong)
    monkeypatch.setattr(oracle, "token_losses", wrong_losses)
    (law,) = [one for one in in_order() if one.name == "laws smollm2-135m float32"]
    found = run_cases(bench, [law], 60)
    result = found["cases"][law.name]["result"]
    assert set(result["broken"]) == {"1 embedding", "1 kv", "7 no prompt", "2 loss", "2 gradient"}
    assert exit_code(found) == 1


def test_a_report_is_complete_whenever_it_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.3)  # of the 20 s that a case has beyond its estimate
    seen = dict[str, Any]()

    def noting(bench: Bench) -> dict[str, Any]:
        bench.note({"first": 1.5})
        seen.update(report_in(bench.out)["cases"])  # what a kill at this moment leaves
        return {"told": "all", "nan": float("nan")}

    def failing(bench: Bench) -> dict[str, Any]:
        raise torch.OutOfMemoryError("2 GiB")

    def hanging(bench: Bench) -> dict[str, Any]:
        bench.note({"second": 2.5})
        while True:
            time.sleep(0.01)

    def without(bench: Bench) -> dict[str, Any]:
        raise Skip("not here")

    cases = [
        Case("noting", 1, 0, noting),
        Case("failing", 2, 0, failing),
        Case("without", 3, 0, without),
        Case("long", 4, 999, noting),
        Case("hanging", 5, 0.1, hanging),
        Case("late", 6, 120, noting),
    ]
    found = run_cases(bench, cases, 60)["cases"]
    assert seen["noting"] == {"status": "running", "partial": {"first": 1.5}}
    assert seen["late"] == {"status": "not reached"}
    assert found["noting"]["status"] == "done" and report_in(bench.out)["cases"]["noting"]["result"]["nan"] == "nan"
    assert (found["failing"]["status"], found["failing"]["reason"]) == ("failed", "out of memory: 2 GiB")
    assert found["failing"]["trace"][-1].endswith("OutOfMemoryError: 2 GiB")
    assert (found["without"]["status"], found["without"]["reason"]) == ("skipped", "not here")
    assert found["long"]["reason"].startswith("takes about 999 s, ")
    assert (found["hanging"]["status"], found["hanging"]["partial"]) == ("cut off", {"second": 2.5})
    assert found["late"]["status"] == "skipped" and found["late"]["reason"].startswith("takes about 120 s, ")


def test_a_report_of_a_run_that_is_told_to_end(bench: Bench) -> None:
    def told(bench: Bench) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return {}

    before = signal.getsignal(signal.SIGTERM)
    run_cases(bench, [Case("told", 1, 0, told), Case("next", 2, 0, told)], 60)
    found = report_in(bench.out)["cases"]
    assert (found["told"]["status"], found["told"]["reason"]) == ("cut off", "terminated by SIGTERM")
    assert found["next"] == {"status": "not reached"}
    assert signal.getsignal(signal.SIGTERM) is before


PACKAGE = """
def mixed():
    raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!")
"""
PLANTED = """
import pytest

from softprompt_planted import mixed

def test_passes(): pass
def test_close():
    raise AssertionError(
        "Tensor-likes are not close!\\n\\nMismatched elements: 3 / 4 (75.0%)\\n"
        "Greatest absolute difference: 0.25 at index (1, 2) (up to 5e-05 allowed)\\n"
        "Greatest relative difference: 0.5 at index (0,) (up to 0.0001 allowed)"
    )
def test_scalar():
    raise AssertionError(
        "Scalars are not close!\\n\\nExpected 2.0 but got 1.5.\\nAbsolute difference: 0.5 (up to 2e-05 allowed)\\n"
    )
def test_norm():
    difference, norm = 0.3, 2.0
    assert difference <= 1e-4 * norm
def test_approx(): assert 1.5 == pytest.approx(1.0, rel=1e-3)
def test_package(): import no_such_package
def test_operation(): raise RuntimeError('"addmm_impl" not implemented for \\'Half\\'')
def test_memory(): raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
def test_fault(): raise RuntimeError("CUDA error: device-side assert triggered")
def test_device(): raise RuntimeError("Expected all tensors to be on the same device, but got index is on cpu")
def test_in_package(): mixed()
def test_dtype(): raise RuntimeError("expected m1 and m2 to have the same dtype, but got: float != c10::BFloat16")
def test_other(): assert [1, 2] == [1, 3]
@pytest.mark.skip(reason="holds on a CPU only: bits")
def test_skipped(): pass
"""


def test_failures_are_sorted(tmp_path: Path) -> None:
    planted = tmp_path / "tests" / "test_planted.py"
    (tmp_path / "tests").mkdir()
    (tmp_path / "softprompt").mkdir()
    (tmp_path / "softprompt" / "softprompt_planted.py").write_text(PACKAGE)
    planted.write_text(PLANTED)
    given = ["--device", "cpu", "--processes", "1", "--dtypes", "float32", "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": f"{ROOT}:{tmp_path / 'softprompt'}"}
    arguments = [ROOT / "scripts" / "test-gpu", *given, planted]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    path = tmp_path / "out" / "tests-float32.json"
    assert done.returncode == 1 and path.exists(), done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert found["complete"] and found["outcomes"] == {"passed": 1, "failed": 12, "skipped": 1}
    failures = {one["test"].split("::test_")[1]: one for one in found["failures"]}
    assert {name: one["kind"] for name, one in failures.items()} == {
        "close": "tolerance",
        "scalar": "tolerance",
        "norm": "tolerance",
        "approx": "tolerance",
        "package": "missing package",
        "operation": "unsupported operation",
        "memory": "out of memory",
        "fault": "device fault",
        "device": "test assumes the CPU",
        "in_package": "devices mixed in the package",
        "dtype": "test assumes float32",
        "other": "other",
    }
    measured = {name: (one["difference"], one["bound"]) for name, one in failures.items() if "bound" in one}
    assert measured == {
        "close": (0.25, 5e-05),
        "scalar": (0.5, 2e-05),
        "norm": (0.3, pytest.approx(2e-4)),
        "approx": (0.5, pytest.approx(1e-3)),
    }
    assert failures["in_package"]["place"] == "softprompt/softprompt_planted.py:3"
    assert "[1, 2] == [1, 3]" in failures["other"]["reason"]
    assert found["skipped"] == {"holds on a CPU only: bits": 1}
    lines = list(table(path))
    assert lines[0] == "cpu, float32: 1 passed, 12 failed, 1 skipped"
    assert any(line.split() == ["4", "tolerance"] for line in lines)
    assert "\n".join(lines) in done.stdout


def test_what_holds_on_a_cpu_only_is_left_out_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    skipped = list[str]()
    marker = pytest.mark.cpu_only("bits").mark
    marked: Any = SimpleNamespace(
        get_closest_marker=lambda name: marker, add_marker=lambda mark: skipped.append(mark.kwargs["reason"])
    )
    plain: Any = SimpleNamespace(get_closest_marker=lambda name: None)
    monkeypatch.setenv("SOFTPROMPT_TEST_DEVICE", "cpu")
    conftest.pytest_collection_modifyitems([marked, plain])
    assert skipped == []
    monkeypatch.setenv("SOFTPROMPT_TEST_DEVICE", "cuda")
    conftest.pytest_collection_modifyitems([marked, plain])
    assert skipped == ["holds on a CPU only: bits"]
