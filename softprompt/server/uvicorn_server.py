"""Runs the application with uvicorn: the listening socket, and graceful shutdown."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn
from starlette.types import ASGIApp

from softprompt.errors import ConfigError, EngineError
from softprompt.server.api_keys import ApiKeys
from softprompt.server.service import Service

log = structlog.get_logger("softprompt.server")

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
MAX_CONNECTIONS = 4096  # open at the same time
CLOSE_S = 2  # seconds for requests that the stop cuts off to send their error


def check_address(host: str, keys: ApiKeys) -> None:
    """Raises ConfigError for an address that other machines can reach, unless there is an API key."""
    if not is_loopback(host) and not keys:
        raise ConfigError(
            "other machines could reach this address without an API key",
            where="--host",
            got=host,
            hint="set SOFTPROMPT_API_KEYS or --api-keys FILE, or listen on 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_hosts(host: str) -> frozenset[str]:
    """Accepted names in the Host header: on loopback the machine's own, against DNS rebinding by web pages.

    On other addresses any name is accepted, since those require an API key.
    """
    return LOCAL_NAMES | {host} if is_loopback(host) else frozenset()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, whose connections send at once. Raises ConfigError if the address is not available."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        created = socket.create_server((host, port), family=family)
        # asyncio sets TCP_NODELAY only where the protocol is named; without it a body waits 40 ms behind its headers
        return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=created.detach())
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen there: {reason}", where=f"{host}:{port}", hint="choose another --port"
        ) from None


async def serve(service: Service, app: ASGIApp, listening: socket.socket) -> None:
    """Serve a started service until a signal comes and what runs has ended.

    Raises EngineError if the engine failed: whoever watches this process should start a new one.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=CLOSE_S,
    )
    host, port = listening.getsockname()[:2]
    log.info("listening", host=host, port=port, model=service.name)
    server = DrainingServer(config, service)
    await server.serve(sockets=[listening])
    log.info("stopped")
    if service.engine.failure and not server.signaled:  # Ctrl-C also ends an engine's own processes
        raise EngineError("the engine has failed", got=service.engine.failure)


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains: after a signal it refuses new requests (503) until the running ones have ended.

    When its time is over, or at a second signal, the running ones end with an error; a third ends the process at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service, self._until = service, float("inf")
        self._signals = 0

    @property
    def signaled(self) -> bool:
        """Whether a signal has come."""
        return self._signals > 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain on SIGTERM or SIGINT; end on the second signal, without a word on the third."""
        self._signals += 1
        self.should_exit = self._signals > 1
        self.force_exit = self._signals > 2
        self._service.rate_limit.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Check ten times a second whether draining has ended."""
        rate_limit = self._service.rate_limit
        if self._service.engine.failure:
            rate_limit.draining = True
        if rate_limit.draining:
            if self._until == float("inf"):
                log.info("draining", requests=rate_limit.requests)
                self._until = time.monotonic() + self._service.limits.drain_s
            if not rate_limit.requests or time.monotonic() > self._until:
                self.should_exit = True
        if self.should_exit:
            self._service.stopping.set()
        return await super().on_tick(counter)


async def run_server(
    service: Service, app: ASGIApp, listening: socket.socket, on_start: Callable[[], None] = lambda: None
) -> None:
    """Start the service, serve, and stop it.

    Args:
        on_start: called when requests are about to be answered.

    Raises EngineError, and ApiError if a pinned soft prompt fails to load.
    """
    try:
        await service.start()
        on_start()
        await serve(service, app, listening)
    finally:
        await asyncio.shield(service.stop())
