"""The ASGI app: routes behind one gate, inside one guard."""

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
    """The app of a service that is started, and stopped, by the caller.

    Args:
        keys: who is let in.
        hosts: names that the Host header may have; empty: any.
        log_content: texts and answers go to the log.
        openapi: /openapi.json is there, for users. There are no pages: theirs would run other people's scripts.
    """
    app = FastAPI(
        title="softprompt",
        version=version("softprompt"),
        openapi_url=None,
        dependencies=[Depends(require_access(keys, service.quota))],
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
    """What the framework itself refuses: a path that is none, a method that a path does not have."""
    assert isinstance(error, HTTPException)
    what = {404: ("There is no such path.", "unknown_path"), 405: ("The path has no such method.", "unknown_method")}
    message, code = what.get(error.status_code, ("The request cannot be read.", "unreadable_request"))
    reply = error_response(ApiError(error.status_code, message, code))
    reply.headers.update(error.headers or {})
    return reply
