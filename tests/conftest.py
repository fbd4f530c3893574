"""What every test has: Ctrl-C works, although a shell that starts the suite in the background has it ignored."""

from __future__ import annotations

import importlib.util
import signal

collect_ignore = []
if not importlib.util.find_spec("vllm"):  # `make test-vllm` has it
    collect_ignore.append("vllm_real")
if not importlib.util.find_spec("xllamacpp"):  # `make test-engines` has it
    collect_ignore.append("engines_real")


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
