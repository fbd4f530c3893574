"""Routes /v1/inspections: readings of a soft prompt, which a worker makes; the result as JSON and as a page."""

from __future__ import annotations

from functools import partial

from fastapi import Depends, FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from softprompt.jobs.inspection_records import InspectionResult, NewInspection
from softprompt.jobs.inspections import Inspections
from softprompt.server.api_keys import Caller
from softprompt.server.body import read_object
from softprompt.server.error_responses import ApiError
from softprompt.server.fine_tuning import FineTuning
from softprompt.server.fine_tuning_reply import page_info
from softprompt.server.inspection_reply import (
    InspectionDeletion,
    InspectionInfo,
    InspectionList,
    InspectionNumbers,
    InspectionRequest,
    inspection_info,
)
from softprompt.server.job_prompts import JOB_KEYS
from softprompt.server.openapi import download, request_body, responses
from softprompt.server.prompt_files import PromptFiles
from softprompt.server.query import PageQuery, query_of, query_parameters
from softprompt.server.routes.studio import ReportHashes
from softprompt.server.same_site import require_same_site
from softprompt.server.schema import validated

INSPECTIONS, INSPECTION = "/v1/inspections", "/v1/inspections/{inspection_id}"
_LIMIT = 64  # rows, as `softprompt inspect --limit`


def add_inspections(app: FastAPI, tuning: FineTuning, origins: tuple[str, ...], reports: ReportHashes | None) -> None:
    """Add the routes.

    Args:
        reports: what the reports hold, so that a browser may show one by itself.
    """
    inspections = Inspections(tuning.store)
    _add_changes(app, tuning, inspections, origins)
    _add_results(app, tuning, inspections, report_policy(reports))

    @app.get(INSPECTIONS, responses=responses(InspectionList), openapi_extra=query_parameters(PageQuery))
    async def listed(request: Request) -> JSONResponse:
        """The caller's inspections, newest first."""
        query, caller = query_of(PageQuery, request), request.state.caller
        read = partial(inspections.list, caller.seen, after=query.after or None, limit=query.limit)
        return JSONResponse(page_info(await tuning.call(read), inspection_info))

    @app.get(INSPECTION, responses=responses(InspectionInfo))
    async def one(inspection_id: str, request: Request) -> JSONResponse:
        """One inspection, and how far it is."""
        record = await tuning.call(partial(inspections.get, inspection_id, request.state.caller.seen))
        return JSONResponse(inspection_info(record))


def _add_changes(app: FastAPI, tuning: FineTuning, inspections: Inspections, origins: tuple[str, ...]) -> None:
    files = PromptFiles(tuning.service)

    @app.post(INSPECTIONS, responses=responses(InspectionInfo), openapi_extra=request_body(InspectionRequest))
    async def create(request: Request) -> JSONResponse:
        """Inspect a soft prompt, whose files are the caller's; a worker does it as soon as one is free."""
        caller: Caller = request.state.caller
        asked = validated(InspectionRequest, await read_object(request, tuning.service.limits))
        with tuning.service.rate_limit.request(caller):
            found = await files.readable(asked.model, caller)
            await tuning.check_file("file", asked.file, caller, is_rows=True)
            of_job = found.key.startswith(JOB_KEYS)
            prompt = found.key.removeprefix(JOB_KEYS) if of_job else str(found.folder.resolve())
            sections = tuple(dict.fromkeys(asked.sections or ()))
            limit = _LIMIT if asked.limit is None else asked.limit
            new = NewInspection(caller.owner, tuning.service.name, asked.model, prompt, asked.file, sections, limit)
            return JSONResponse(inspection_info(await tuning.call(partial(inspections.create, new))))

    same_site = [Depends(require_same_site(origins))]

    @app.delete(INSPECTION, responses=responses(InspectionDeletion), dependencies=same_site)
    async def delete(inspection_id: str, request: Request) -> JSONResponse:
        """Forget an inspection and its result; one that runs ends."""
        await tuning.call(partial(inspections.delete, inspection_id, request.state.caller.seen))
        return JSONResponse({"id": inspection_id, "object": "soft_prompt.inspection", "deleted": True})


def _add_results(app: FastAPI, tuning: FineTuning, inspections: Inspections, policy: str) -> None:
    async def found(inspection_id: str, request: Request) -> InspectionResult:
        owner = request.state.caller.seen
        result = await tuning.call(partial(inspections.result, inspection_id, owner))
        if result is None:
            record = await tuning.call(partial(inspections.get, inspection_id, owner))
            reason = record.error.message if record.error is not None else f"it is {record.status}"
            raise ApiError(400, f"The inspection has no result: {reason}.", "no_result", param="inspection_id")
        return result

    @app.get(f"{INSPECTION}/result", responses=responses(InspectionNumbers))
    async def result(inspection_id: str, request: Request) -> Response:
        """All numbers of an inspection."""
        return Response((await found(inspection_id, request)).numbers, media_type="application/json")

    @app.get(f"{INSPECTION}/report", responses=download("text/html"), response_class=Response)
    async def report(inspection_id: str, request: Request) -> HTMLResponse:
        """The inspection as a page, which brings its own style and runs only its own script."""
        page = (await found(inspection_id, request)).report
        request.state.headers["content-security-policy"] = policy
        return HTMLResponse(page)


def report_policy(reports: ReportHashes | None) -> str:
    """The content policy of a report that a browser shows by itself: a sandbox without an origin."""
    parts = "" if reports is None else f"style-src {reports.style}; script-src {reports.script}; "
    return (
        f"sandbox allow-scripts; default-src 'none'; {parts}base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
