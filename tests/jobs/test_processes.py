"""Worker processes beside a server: how many threads each computes with."""

from __future__ import annotations

import pytest

from softprompt.jobs import processes
from softprompt.jobs.processes import WorkerProcesses


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, 1, "4"), (8, 3, "2"), (2, 1, "1"), (1, 2, "1")])
def test_workers_share_the_usable_cores_with_the_server(
    cores: int, workers: int, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "usable_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert WorkerProcesses([], workers, 1.0)._environment["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert WorkerProcesses([], workers, 1.0)._environment["OMP_NUM_THREADS"] == "7", "as the user says"
