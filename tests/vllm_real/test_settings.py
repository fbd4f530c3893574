"""The same answers however vLLM schedules, caches and splits; each in a process of its own, as devices are shared out
once in a process."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vllm_real.shelf import Shelf, check_all, running
from tests.vllm_real.tiny import BLOCK

CASES: dict[str, dict[str, Any]] = {
    "preemption": {"num_gpu_blocks_override": 8, "max_model_len": 224, "disable_log_stats": False},
    "no prefix cache": {"enable_prefix_caching": False},
    "blocks that no prefix fills": {"block_size": 2 * BLOCK, "max_num_batched_tokens": 48},
    "tensor parallel": {"tensor_parallel_size": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_other_settings(base: Path, shelf: Shelf, name: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=try_settings, args=(base, shelf, name))
    process.start()
    process.join(280)
    assert process.exitcode == 0


def try_settings(base: Path, shelf: Shelf, name: str) -> None:
    """In the new process, which ends with 0 if all answers are right, twice."""
    with running(base, shelf, **CASES[name]) as llm:
        check_all(llm, shelf)
        check_all(llm, shelf)
        if name == "preemption":
            preempted = [metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"]
            assert sum(preempted) > 0, "the case tries what it says"
    sys.stdout.flush()
