"""The soak benchmark on a small scale: a server of its own process, clients that leave and send nonsense."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.serve_soak import KINDS, arguments, run
from tests.cli.test_serve import PROGRAM
from tests.support.saved import save_tiny

ROOT = Path(__file__).parents[2]


def test_a_small_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    model = save_tiny(tmp_path / "model", bos=True)
    given = ["--model", str(model), "--requests", "80", "--clients", "12", "--prompts", "6", "--places", "3"]
    result = run(arguments(given), tmp_path, [sys.executable, "-c", PROGRAM])
    assert result["first_failures"] == []
    assert (result["failures"], result["faults_in_the_log"], result["exit_code"]) == (0, 0, 0)
    assert sum(result["requests"].values()) == 80 and result["requests"].keys() == KINDS.keys()
    assert {"plain", "schema", "tools", "echo", "plain, left"} <= result["kinds"].keys()
    server = result["server"]
    assert server["num_requests_running"] == server["num_requests_waiting"] == 0
    assert 0 < server["prompts_loaded"] <= 3 and server["prompt_cache_evictions_total"] > 0
    assert server["generation_tokens_total"] >= result["tokens_per_second"] > 0
    assert 0 < result["memory_mb"]["warm"] <= result["memory_mb"]["end"] * 1.2
