"""vLLM on the CPU and in this process, a tiny model on disk, and soft prompts of both forms.

vLLM's own settings are environment variables that it reads when it is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",  # GiB
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_NO_USAGE_STATS="1",
    VLLM_WORKER_MULTIPROC_METHOD="spawn",
    OMP_NUM_THREADS="1",
    TORCHDYNAMO_DISABLE="1",  # vLLM compiles parts of its sampler even when it is told to be eager
)

from softprompt.models.frozen_lm import FrozenLM
from tests.vllm_real.shelf import Shelf
from tests.vllm_real.tiny import save_model, tiny


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model."""
    return save_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def lm(base: Path) -> FrozenLM:
    """The same model as the library has it."""
    return tiny(base)


@pytest.fixture(scope="session")
def shelf(lm: FrozenLM, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Eight compiled prefixes."""
    return Shelf(lm, tmp_path_factory.mktemp("shelf"))
