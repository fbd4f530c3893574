"""Engines that start and stop in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from transformers.generation.continuous_batching import continuous_api


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    """A manager collects garbage when it goes, which takes longer than a whole test."""
    with patch.object(continuous_api, "gc", SimpleNamespace(collect=lambda: 0)):
        yield
