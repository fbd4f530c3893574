"""Routes for operators: liveness, readiness, version and metrics."""

from __future__ import annotations

import asyncio
from importlib.metadata import version as installed
from typing import Literal

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from softprompt.server.error_responses import ApiError
from softprompt.server.openapi import responses
from softprompt.server.service import Service


class HealthStatus(TypedDict):
    """The response of a healthy server."""

    status: Literal["ok"]


class VersionInfo(TypedDict):
    """The version of softprompt."""

    version: str


def add_operations(app: FastAPI, service: Service) -> None:
    """Add the routes."""

    @app.head("/livez", include_in_schema=False)
    @app.get("/livez", responses=responses(HealthStatus))
    async def livez() -> JSONResponse:
        """Liveness: the process responds."""
        return JSONResponse({"status": "ok"})

    @app.head("/health", include_in_schema=False)
    @app.head("/readyz", include_in_schema=False)
    @app.get("/health", responses=responses(HealthStatus))
    @app.get("/readyz", responses=responses(HealthStatus))
    async def readyz() -> JSONResponse:
        """Readiness: the engine works and the server is not stopping."""
        if service.unready:
            raise ApiError(503, f"Not ready: {service.unready}.", "not_ready", retry_after_s=5)
        return JSONResponse({"status": "ok"})

    @app.get("/version", responses=responses(VersionInfo))
    async def version() -> JSONResponse:
        """The version of softprompt."""
        return JSONResponse({"version": installed("softprompt")})

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(await asyncio.to_thread(service.metrics.text), media_type=CONTENT_TYPE_LATEST)
