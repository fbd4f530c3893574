"""The ASGI application: routes behind authentication, wrapped in request middleware."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.server.api_keys import ApiKeys
from softprompt.server.auth import require_access
from softprompt.server.cors import add_cors
from softprompt.server.error_responses import ApiError, unknown_path
from softprompt.server.middleware import ErrorMiddleware, RequestMiddleware, error_response
from softprompt.server.routes.cards import add_cards
from softprompt.server.routes.generation import add_generation
from softprompt.server.routes.models import add_models
from softprompt.server.routes.operations import add_operations
from softprompt.server.routes.responses import add_responses
from softprompt.server.routes.soft_prompts import add_prompts
from softprompt.server.routes.studio import ReportHashes, add_studio
from softprompt.server.routes.tokenizer import add_tokenizer
from softprompt.server.service import Service

if TYPE_CHECKING:
    from softprompt.jobs.store import JobStore


def create_app(
    service: Service,
    keys: ApiKeys,
    *,
    hosts: frozenset[str] = frozenset(),
    origins: tuple[str, ...] = (),
    log_content: bool = False,
    openapi: bool = False,
    jobs: JobStore | None = None,
    studio: bool = False,
    reports: ReportHashes | None = None,
) -> FastAPI:
    """The application of a service, which the caller starts and stops.

    Args:
        keys: the accepted API keys.
        hosts: accepted names in the Host header; empty accepts any.
        origins: origins whose web pages may use the server.
        log_content: log texts and answers.
        openapi: serve /openapi.json to users. There are no documentation pages: they would run third-party scripts.
        jobs: serve its files and fine-tuning jobs.
        studio: serve the page /studio.
        reports: hashes of what the reports of inspections hold, which the page shows.
    """
    app = FastAPI(
        title="softprompt",
        version=version("softprompt"),
        openapi_url=None,
        dependencies=[Depends(require_access(keys, service.rate_limit))],
        exception_handlers={HTTPException: _unrouted},
    )
    app.add_middleware(ErrorMiddleware, hosts=hosts, log_content=log_content)
    if origins:
        add_cors(app, origins)
    app.add_middleware(RequestMiddleware, metrics=service.metrics)  # the last one is the outermost
    add_generation(app, service, log_content)
    add_responses(app, service, log_content)
    add_models(app, service, origins)
    add_tokenizer(app, service)
    add_prompts(app, service)
    add_cards(app, service, jobs)
    add_operations(app, service)
    if jobs is not None:
        add_jobs(app, service, jobs, origins, reports)
    if studio:
        add_studio(app, reports)
    if openapi:

        @app.get("/openapi.json", include_in_schema=False)
        async def document() -> JSONResponse:
            return JSONResponse(app.openapi())

    return app


def add_jobs(
    app: FastAPI, service: Service, store: JobStore, origins: tuple[str, ...], reports: ReportHashes | None
) -> None:
    """Add the routes of files, fine-tuning jobs and inspections, whose modules need packages that others do not."""
    from sqlalchemy.exc import SQLAlchemyError

    from softprompt.server.fine_tuning import FineTuning
    from softprompt.server.routes.files import add_files
    from softprompt.server.routes.fine_tuning import add_fine_tuning
    from softprompt.server.routes.inspections import add_inspections

    def counts() -> dict[str, int]:
        try:
            return store.open_jobs()
        except SQLAlchemyError:  # the store is away: the metrics of answers are shown without these
            return {}

    service.metrics.watch_jobs(counts)
    tuning = FineTuning(store, service)
    add_files(app, tuning, origins)
    add_fine_tuning(app, tuning, origins)
    add_inspections(app, tuning, origins, reports)


async def _unrouted(request: Request, error: Exception) -> Response:
    """The response to an error of the framework: an unknown path, or a method that the path does not have."""
    assert isinstance(error, HTTPException)
    messages = {
        404: unknown_path(request.url.path),
        405: ("The path has no such method.", "unknown_method"),
    }
    message, code = messages.get(error.status_code, ("The request cannot be read.", "unreadable_request"))
    response = error_response(ApiError(error.status_code, message, code))
    response.headers.update(error.headers or {})
    return response
