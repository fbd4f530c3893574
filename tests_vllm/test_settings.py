"""The same answers however vLLM schedules, caches and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm import LLM

from tests_vllm.shelf import Shelf, check_all, running
from tests_vllm.tiny import BLOCK


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("preemption", {"num_gpu_blocks_override": 8, "max_model_len": 224}),
        ("no prefix cache", {"enable_prefix_caching": False}),
        ("blocks that fit no prefix", {"block_size": 2 * BLOCK, "max_num_batched_tokens": 48}),
    ],
)
def test_other_settings(base: Path, shelf: Shelf, name: str, settings: dict[str, Any]) -> None:
    with running(base, shelf, disable_log_stats=False, **settings) as llm:
        check_all(llm, shelf)
        if name == "preemption":
            assert preemptions(llm) > 0, "the case tries what it says"


def preemptions(llm: LLM) -> float:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
