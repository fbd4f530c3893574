"""What every test has: Ctrl-C works, although a shell that starts the suite in the background has it ignored.

A test that only holds on a CPU is marked `cpu_only("reason")`; `scripts/test-gpu` leaves it out, with the reason.
"""

from __future__ import annotations

import importlib.util
import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of a test; in CI the examples are the same each time (Hypothesis' own profile "ci").
settings.register_profile(
    "any speed",
    settings.get_profile("ci" if os.environ.get("CI") else "default"),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any speed")

collect_ignore = []
if not importlib.util.find_spec("vllm"):  # `make test-vllm` has it
    collect_ignore.append("vllm_real")
if not importlib.util.find_spec("xllamacpp"):  # `make test-engines` has it
    collect_ignore.append("engines_real")
if not importlib.util.find_spec("langchain_openai"):  # `make test-clients` has it
    collect_ignore.append("clients_real")


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("SOFTPROMPT_TEST_DEVICE", "cpu") == "cpu":
        return
    for item in items:
        if marker := item.get_closest_marker("cpu_only"):
            item.add_marker(pytest.mark.skip(reason=f"holds on a CPU only: {marker.args[0]}"))
