"""The ASGI application: routes behind authentication, wrapped in request middleware."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.server.api_keys import ApiKeys
from softprompt.server.auth import require_access
from softprompt.server.error_responses import ApiError
from softprompt.server.middleware import RequestMiddleware, error_response
from softprompt.server.routes.generation import add_generation
from softprompt.server.routes.models import add_models
from softprompt.server.routes.operations import add_operations
from softprompt.server.routes.soft_prompts import add_prompts
from softprompt.server.service import Service


def create_app(
    service: Service,
    keys: ApiKeys,
    *,
    hosts: frozenset[str] = frozenset(),
    log_content: bool = False,
    openapi: bool = False,
) -> FastAPI:
    """The application of a service, which the caller starts and stops.

    Args:
        keys: the accepted API keys.
        hosts: accepted names in the Host header; empty accepts any.
        log_content: log texts and answers.
        openapi: serve /openapi.json to users. There are no documentation pages: they would run third-party scripts.
    """
    app = FastAPI(
        title="softprompt",
        version=version("softprompt"),
        openapi_url=None,
        dependencies=[Depends(require_access(keys, service.rate_limit))],
        exception_handlers={HTTPException: _unrouted},
    )
    app.add_middleware(RequestMiddleware, metrics=service.metrics, hosts=hosts, log_content=log_content)
    add_generation(app, service, log_content)
    add_models(app, service)
    add_prompts(app, service)
    add_operations(app, service)
    if openapi:

        @app.get("/openapi.json", include_in_schema=False)
        async def document() -> JSONResponse:
            return JSONResponse(app.openapi())

    return app


async def _unrouted(request: Request, error: Exception) -> Response:
    """The response to an error of the framework: an unknown path, or a method that the path does not have."""
    assert isinstance(error, HTTPException)
    messages = {
        404: ("There is no such path.", "unknown_path"),
        405: ("The path has no such method.", "unknown_method"),
    }
    message, code = messages.get(error.status_code, ("The request cannot be read.", "unreadable_request"))
    response = error_response(ApiError(error.status_code, message, code))
    response.headers.update(error.headers or {})
    return response
