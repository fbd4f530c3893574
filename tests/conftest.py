"""What every test has: Ctrl-C works, although a shell that starts the suite in the background has it ignored."""

from __future__ import annotations

import importlib.util
import signal

collect_ignore = [] if importlib.util.find_spec("vllm") else ["vllm_real"]  # `make test-vllm` has vLLM


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
