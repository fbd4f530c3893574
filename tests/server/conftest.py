"""One server for all tests that leave it as it was, and soft prompts to be read only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.support.live_server import Live, live, save_all


@pytest.fixture(scope="session", autouse=True)
def silent() -> Iterator[None]:
    """Log lines go nowhere; tests that read them use structlog's `capture_logs`."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of soft prompts; only to be read."""
    return save_all(tmp_path_factory.mktemp("server") / "prompts")


@pytest.fixture(scope="session")
def shared(prompts: Path) -> Iterator[Live]:
    """A server with keys and the default limits."""
    with live(prompts) as server:
        yield server


@pytest.fixture
def server(shared: Live) -> Iterator[Live]:
    """The shared server; after each test nothing runs any more."""
    yield shared
    shared.engine.pace, shared.engine.broken = 0.0, ""
    shared.engine.ends_after = 0
    shared.engine.says = ""
    shared.idle()
    shared.engine.cached = 0
    shared.engine.seen.clear()
