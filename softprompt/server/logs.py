"""Logging to stderr, as JSON lines or for reading. Events hold names and lengths, never a client's text."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Literal, TextIO, cast

import structlog


class _Stderr:
    """The process's stderr as it is when a line is written. A line that nobody can read any more ends no request."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def configure(kind: Literal["json", "console"]) -> None:
    """Configure structlog, and format the standard library's warnings and errors (uvicorn's) alike."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if kind == "console":
        last = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    stderr = cast(TextIO, _Stderr())
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(stderr),
    )
    handler = logging.StreamHandler(stderr)
    renderers = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, last]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=renderers))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
