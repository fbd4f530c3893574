"""Cores that a process may use: affinity, and the quotas of control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from softprompt.models import cores
from softprompt.models.cores import limit_threads, usable_cores


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


CPU = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("groups", "files", "cores_of_8"),
    [
        ("0::/", {}, 8),
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ("0::/", {"sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ("0::/", {"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ("0::/", {"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ("0::/", {"sys/fs/cgroup/cpu.max": "6400000 100000"}, 8),
        ("0::/a/b", {"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b", {"sys/fs/cgroup/a/b/cpu.max": "100000 50000", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 2),
        ("0::/../b", {"sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        (
            "5:cpu,cpuacct:/d\n4:memory:/d\n1:cpuset:/",
            {f"{CPU}/d/cpu.cfs_quota_us": "250000", f"{CPU}/d/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "5:cpu,cpuacct:/docker/abc",  # as seen in a container: its own group is the mount
            {f"{CPU}/cpu.cfs_quota_us": "100000", f"{CPU}/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("5:cpu:/", {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
        ("nonsense", {"sys/fs/cgroup/cpu.max": "x y z"}, 8),
    ],
)
def test_quotas(
    groups: str, files: dict[str, str], cores_of_8: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "_affinity", lambda: 8)
    assert usable_cores(machine(tmp_path, groups, files)) == cores_of_8


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores(tmp_path) == 1, "and a machine without control groups"
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cores(tmp_path) == len(before)


def test_threads_follow_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(cores, "usable_cores", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    limit_threads()
    assert threads == [4]
    monkeypatch.delenv("OMP_NUM_THREADS")
    limit_threads()
    limit_threads()
    assert threads == [4, 3]
    threads.append(2)  # of physical cores, as MKL counts them
    limit_threads()
    assert threads[-1] == 2
