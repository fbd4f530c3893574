"""The processor cores that this process may use, which may be fewer than the machine has.

The kernel keeps a process to some cores (affinity: `taskset`, SLURM, pinned virtual machines) and to some processor
time (the quota of its control group: `docker run --cpus 2`, limits of Kubernetes). More threads than that only wait
for each other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

THREADS_VARIABLE = "OMP_NUM_THREADS"  # which a user sets to decide otherwise


def usable_cores(root: Path = Path("/")) -> int:
    """Cores by affinity and by the quotas of the control group and those around it; at least 1.

    A quota of 1.5 cores counts as 2: two threads get more done in it than one.

    Args:
        root: where /proc and /sys are.
    """
    return min([_affinity(), *(max(1, math.ceil(quota)) for quota in _quotas(root))])


def limit_threads() -> None:
    """Let torch compute with no more threads than there are usable cores, unless `OMP_NUM_THREADS` says how many.

    For programs of their own, such as the verbs of the command line: it changes a setting of the whole process.
    """
    import torch

    cores = usable_cores()
    if THREADS_VARIABLE not in os.environ and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


def _affinity() -> int:
    counted = getattr(os, "process_cpu_count", None)  # Python 3.13; $PYTHON_CPU_COUNT may set it
    if counted is not None:
        return counted() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each control group of this process may fill, where that is limited."""
    groups = _read(root / "proc/self/cgroup").splitlines()
    mounts = root / "sys/fs/cgroup"
    for line in groups:
        if line.count(":") < 2:
            continue
        controllers, path = line.split(":", 2)[1:]
        if not controllers:  # version 2: one tree for all controllers
            for folder in _upwards(mounts, path):
                yield from _cores(_read(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for mount in (mounts / controllers, mounts / "cpu"):
                for folder in _upwards(mount, path):
                    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
                    yield from _cores(f"{quota} {period}")


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The group's folder and those around it up to the mount; inside a container the mount may be the group itself."""
    folder = mount / path.strip("/")
    yield from (each for each in (folder, *folder.parents) if each == mount or mount in each.parents)


def _cores(written: str) -> Iterator[float]:
    """The cores of "QUOTA PERIOD", both in microseconds; nothing if there is no quota."""
    try:
        quota, period = written.split()
        share = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return
    if share > 0:  # version 1 writes -1 for none
        yield share


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
