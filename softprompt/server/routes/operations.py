"""What operators and their machines ask: is it alive, is it ready, what is it busy with, which version."""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import Literal

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from softprompt.server.error_responses import ApiError
from softprompt.server.openapi import replies_of
from softprompt.server.service import Service


class Status(TypedDict):
    """All is well."""

    status: Literal["ok"]


class Version(TypedDict):
    """Of softprompt."""

    version: str


def add_operations(app: FastAPI, service: Service) -> None:
    """Add the routes."""

    @app.get("/livez", responses=replies_of(Status))
    async def livez() -> JSONResponse:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/health", responses=replies_of(Status))
    @app.get("/readyz", responses=replies_of(Status))
    async def readyz() -> JSONResponse:
        """Requests are taken: the engine works and the server is not stopping."""
        if service.unready:
            raise ApiError(503, f"Not ready: {service.unready}.", "not_ready", retry_after_s=5)
        return JSONResponse({"status": "ok"})

    @app.get("/version", responses=replies_of(Version))
    async def version() -> JSONResponse:
        """The version of softprompt."""
        return JSONResponse({"version": installed("softprompt")})

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
