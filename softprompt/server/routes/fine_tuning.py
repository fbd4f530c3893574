"""Routes /v1/fine_tuning: jobs, their events and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fastapi import Depends, FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.jobs.records import JobRecord
from softprompt.server.api_keys import Caller
from softprompt.server.body import read_object
from softprompt.server.error_responses import ApiError
from softprompt.server.fine_tuning import FineTuning
from softprompt.server.fine_tuning_reply import (
    CheckpointList,
    FineTuningJobInfo,
    JobEventList,
    JobList,
    checkpoint_info,
    event_info,
    job_info,
    page_info,
)
from softprompt.server.fine_tuning_request import JobRequest, parse_job
from softprompt.server.generation_stream import EventStream
from softprompt.server.job_preview import OptionsInfo, options_info
from softprompt.server.openapi import request_body, responses
from softprompt.server.query import EventQuery, JobQuery, PageQuery, query_of, query_parameters
from softprompt.server.same_site import require_same_site

JOBS, JOB = "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/{fine_tuning_job_id}"
PERMISSIONS = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"
GRADERS = "/v1/fine_tuning/alpha/graders"
OPTIONS = "/v1/fine_tuning/options"
FOLLOW_S = 7 * 24 * 3600.0  # of a stream of events at most


def add_fine_tuning(app: FastAPI, tuning: FineTuning, origins: tuple[str, ...]) -> None:
    """Add the routes."""
    _add_jobs(app, tuning)
    _add_changes(app, tuning, origins)
    _add_histories(app, tuning)
    _add_refused(app)


def _add_jobs(app: FastAPI, tuning: FineTuning) -> None:
    store = tuning.store

    @app.get(OPTIONS, responses=responses(OptionsInfo))
    async def options() -> JSONResponse:
        """What jobs may have: base model, methods and quotas."""
        return JSONResponse(await options_info(tuning))

    @app.post(JOBS, responses=responses(FineTuningJobInfo), openapi_extra=request_body(JobRequest))
    async def create(request: Request) -> JSONResponse:
        """Train a soft prompt on an uploaded file, or distill a text."""
        caller: Caller = request.state.caller
        body = await read_object(request, tuning.service.limits)
        with tuning.service.rate_limit.request(caller):
            return JSONResponse(job_info(await tuning.create(parse_job(body), caller)))

    @app.get(JOBS, responses=responses(JobList), openapi_extra=query_parameters(JobQuery))
    async def listed(request: Request) -> JSONResponse:
        """The caller's jobs, newest first."""
        query, caller = query_of(JobQuery, request), request.state.caller
        metadata = query.metadata if "metadata" in query.model_fields_set else None
        read = partial(store.jobs, caller.seen, after=query.after or None, limit=query.limit, metadata=metadata)
        return JSONResponse(page_info(await tuning.call(read), job_info))

    @app.get(JOB, responses=responses(FineTuningJobInfo))
    async def one(fine_tuning_job_id: str, request: Request) -> JSONResponse:
        """One job."""
        job = await tuning.call(partial(store.job, fine_tuning_job_id, request.state.caller.seen))
        return JSONResponse(job_info(job))


def _add_changes(app: FastAPI, tuning: FineTuning, origins: tuple[str, ...]) -> None:
    described, same_site = responses(FineTuningJobInfo), [Depends(require_same_site(origins))]

    async def changed(change: Callable[[str, str | None], JobRecord], job_id: str, request: Request) -> JSONResponse:
        return JSONResponse(job_info(await tuning.call(partial(change, job_id, request.state.caller.seen))))

    @app.post(f"{JOB}/cancel", responses=described, dependencies=same_site)
    async def cancel(fine_tuning_job_id: str, request: Request) -> JSONResponse:
        """End a job: at once while it waits, within a training step while it runs."""
        return await changed(tuning.store.cancel_job, fine_tuning_job_id, request)

    @app.post(f"{JOB}/pause", responses=described, dependencies=same_site)
    async def pause(fine_tuning_job_id: str, request: Request) -> JSONResponse:
        """Stop a job at a checkpoint until it is resumed."""
        return await changed(tuning.store.pause_job, fine_tuning_job_id, request)

    @app.post(f"{JOB}/resume", responses=described, dependencies=same_site)
    async def resume(fine_tuning_job_id: str, request: Request) -> JSONResponse:
        """Let a paused job go on from its checkpoint."""
        return await changed(tuning.store.resume_job, fine_tuning_job_id, request)


def _add_histories(app: FastAPI, tuning: FineTuning) -> None:
    store = tuning.store

    @app.get(
        f"{JOB}/events", responses=responses(JobEventList, stream=True), openapi_extra=query_parameters(EventQuery)
    )
    async def events(fine_tuning_job_id: str, request: Request) -> Response:
        """What happened to a job: a page, newest first, or a stream from the oldest one until the job has ended."""
        query, caller = query_of(EventQuery, request), request.state.caller
        after = query.after or None
        if query.stream == "true":
            return await _stream(fine_tuning_job_id, after, request)
        read = partial(store.events, fine_tuning_job_id, caller.seen, after=after, limit=query.limit)
        return JSONResponse(page_info(await tuning.call(read), event_info))

    async def _stream(job_id: str, after: str | None, request: Request) -> Response:
        interruptions = tuning.service.interruptions(request.receive)
        lasting = replace(interruptions, deadline=interruptions.deadline + FOLLOW_S)
        events = tuning.follow(job_id, request.state.caller, after)
        return await EventStream.begin(events, lasting, tuning.service.limits.keep_alive_s)

    @app.get(f"{JOB}/checkpoints", responses=responses(CheckpointList), openapi_extra=query_parameters(PageQuery))
    async def checkpoints(fine_tuning_job_id: str, request: Request) -> JSONResponse:
        """Soft prompts of a job's validations, newest first; requests can name them."""
        query, caller = query_of(PageQuery, request), request.state.caller
        read = partial(store.checkpoints, fine_tuning_job_id, caller.seen, after=query.after or None, limit=query.limit)
        page = await tuning.call(read)
        return JSONResponse(page_info(page, checkpoint_info, [checkpoint.id for checkpoint in page.items]))


def _add_refused(app: FastAPI) -> None:
    """Paths of OpenAI's API that have no meaning here."""

    @app.get(PERMISSIONS, responses=responses(CheckpointList))
    @app.post(PERMISSIONS, responses=responses(CheckpointList))
    @app.delete(f"{PERMISSIONS}/{{permission_id}}", responses=responses(CheckpointList))
    async def permissions() -> Response:
        """Refused: there are no projects."""
        message = "Permissions of checkpoints are not supported: there are no projects, and a checkpoint is its key's."
        raise ApiError(404, message, "unsupported_path")

    @app.post(f"{GRADERS}/run", responses=responses(CheckpointList))
    @app.post(f"{GRADERS}/validate", responses=responses(CheckpointList))
    async def graders() -> Response:
        """Refused: graders are for reinforcement."""
        raise ApiError(404, "Graders are not supported: jobs learn from answers alone.", "unsupported_path")
