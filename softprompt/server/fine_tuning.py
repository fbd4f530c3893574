"""Files and fine-tuning jobs behind the HTTP routes: what a caller sends becomes calls of the jobs' store.

Every call names the caller as the owner, so an object of another caller is as unknown as one that never existed. The
store blocks, so it is called in threads; its errors become those of the API.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import structlog
from anyio.to_thread import run_sync
from starlette.requests import Request

from softprompt.errors import ConfigError, JobError, NotFoundError, QuotaError, StoreError
from softprompt.jobs.contents import Upload
from softprompt.jobs.records import DistillRequest, FileRecord, JobRecord, NewJob, SoftPromptRequest
from softprompt.jobs.store import JobStore
from softprompt.server.api_keys import Caller
from softprompt.server.error_responses import ApiError, from_text, invalid, shown_value, stopping
from softprompt.server.file_check import checked_file
from softprompt.server.fine_tuning_reply import JobEventInfo, event_info
from softprompt.server.fine_tuning_request import (
    MAX_SEED,
    DistillFields,
    JobRequest,
    hyperparameters_of,
    soft_prompt_of,
)
from softprompt.server.job_prompts import JOB_KEYS
from softprompt.server.service import Service
from softprompt.server.upload import receive_file

TRAINING = "fine-tune"  # the purpose of files that clients send
_PURPOSES = ("assistants", "batch", "vision", "user_data", "evals", "fine-tune-results")
_CALLS, _CHECKS = 8, 2  # of the store, and of files being checked, at a time
_UPLOADS = 8  # at a time
_EVENTS = 100  # read at a time to follow a job
# Settings of a run, and the fields of a request that they come from.
_SETTINGS = {
    "method.name": "soft_prompt.method",
    "method.n_tokens": "soft_prompt.n_tokens",
    "train.minutes": "soft_prompt.minutes",
    "train.epochs": "hyperparameters.n_epochs",
    "train.batch_size": "hyperparameters.batch_size",
}
POLL_S = 0.5  # between looks for new events of a followed job
_T = TypeVar("_T")

log = structlog.get_logger("softprompt.server")


class FineTuning:
    """Files and jobs of a store, for the callers of a service."""

    def __init__(self, store: JobStore, service: Service) -> None:
        self.store, self.service = store, service
        self._calls, self._checks = anyio.CapacityLimiter(_CALLS), anyio.CapacityLimiter(_CHECKS)
        self._uploads = 0

    async def call(self, work: Callable[[], _T]) -> _T:
        """The result of a call of the store. Raises ApiError."""
        with _api_errors():
            return await run_sync(work, limiter=self._calls)

    async def add_file(self, request: Request, caller: Caller) -> FileRecord:
        """Receive an upload, check its rows and keep it. Raises ApiError."""
        if self._uploads >= _UPLOADS:
            raise ApiError(429, "Too many uploads at a time.", "concurrency_exceeded", retry_after_s=5)
        self._uploads += 1
        try:
            with await self.call(self.store.files.upload) as upload, _api_errors():
                form = await receive_file(request, upload, self.service.limits.upload_s)
                _check_form(form.fields)
                n_rows = await self._check(upload, form.filename)
                add = partial(self.store.files.add, caller.owner, TRAINING, form.filename, upload, n_rows)
                return await self.call(add)
        finally:
            self._uploads -= 1

    async def create(self, request: JobRequest, caller: Caller) -> JobRecord:
        """Put a job into the queue. Raises ApiError."""
        hyperparameters = hyperparameters_of(request.method, request.hyperparameters)
        init_prompt = await self.init_prompt(request.model, caller)
        if init_prompt is not None and request.distill is not None:
            raise invalid("A distillation begins with its text: model is the base model's name.", "model")
        await self.check_file("training_file", request.training_file, caller, is_rows=True)
        await self.check_file("validation_file", request.validation_file, caller, is_rows=True)
        distill = await self._distill(request.distill, caller)
        wanted = soft_prompt_of(request)
        new = NewJob(
            caller.owner,
            self.service.name,
            request.training_file or "",
            request.validation_file,
            init_prompt,
            request.slug,
            secrets.randbelow(MAX_SEED) if request.seed is None else request.seed,
            hyperparameters,
            "supervised" if request.method is None else request.method.type,
            soft_prompt=SoftPromptRequest(wanted.method, wanted.n_tokens, wanted.minutes, distill),
            metadata=request.metadata or {},
        )
        return await self.call(lambda: self.store.create_job(new))

    async def follow(self, job_id: str, caller: Caller, after: str | None) -> AsyncGenerator[JobEventInfo, None]:
        """A job's events as they come, oldest first, until it has ended. Raises ApiError, 503 once the server stops."""
        with self.service.rate_limit.request(caller):
            ended = False
            while not ended:
                job = await self.call(lambda: self.store.job(job_id, caller.seen))
                ended, more = job.is_finished, True  # what came with its end is read after that was seen
                while more:
                    read = partial(self.store.events, after=after, limit=_EVENTS, newest_first=False)
                    page = await self.call(partial(read, job_id, caller.seen))
                    for event in page.items:
                        yield event_info(event)
                        after = event.id
                    more = page.has_more
                if self.service.rate_limit.draining:
                    raise stopping()
                await asyncio.sleep(0 if ended else POLL_S)

    async def _check(self, upload: Upload, filename: str) -> int:
        path: Path = await self.call(upload.flush)
        quotas = await self.call(self.store.quotas)
        return await self.check(partial(checked_file, path, filename, quotas.file_rows))

    async def check(self, work: Callable[[], _T]) -> _T:
        """The result of work on a file, which takes seconds: few at a time. Raises ApiError."""
        with _api_errors():
            return await run_sync(work, limiter=self._checks)

    async def check_file(self, param: str, file_id: str | None, caller: Caller, *, is_rows: bool) -> FileRecord | None:
        """The caller's file, if a job or an inspection can use it. Raises ApiError."""
        if file_id is None:
            return None
        try:
            file = await self.call(lambda: self.store.files.get(file_id, caller.owner))
        except ApiError as error:
            raise (_no_file(file_id, param) if error.status == 404 else error) from error
        if file.purpose != TRAINING:
            raise invalid(f"{param} is a file with the purpose {file.purpose}, not {TRAINING}.", param, "invalid_file")
        if is_rows and not file.rows:
            message = f"{param} is a text, which has no rows: soft_prompt.distill.file distills it."
            raise invalid(message, param, "invalid_file")
        if not is_rows and file.rows:
            message = f"{param} has rows. A text is uploaded under a name that ends with .txt or .md."
            raise invalid(message, param, "invalid_file")
        return file

    async def init_prompt(self, model: str, caller: Caller) -> str | None:
        """The soft prompt that a model's name means, as workers find it; None of the base model. Raises ApiError."""
        key = await self.service.directory.find(model, caller)
        if key is None:
            return None
        if await run_sync(self.service.catalogue.is_router, key):
            raise invalid("A router is no soft prompt that training could go on from.", "model")
        path = await self.service.directory.path(key)
        if path is None:
            raise invalid("The soft prompt's files are gone.", "model")
        return key.removeprefix(JOB_KEYS) if key.startswith(JOB_KEYS) else str(path.resolve())

    async def _distill(self, fields: DistillFields | None, caller: Caller) -> DistillRequest | None:
        """The text to distill, in a file."""
        if fields is None:
            return None
        await self.check_file("soft_prompt.distill.file", fields.file, caller, is_rows=False)
        mode = fields.mode or "text"
        if fields.file is not None:
            return DistillRequest(fields.file, mode)
        text = fields.text or ""
        if not text.strip():
            raise invalid("The text is empty.", "soft_prompt.distill.text")
        file = await self.call(lambda: self._kept_text(text, caller))
        return DistillRequest(file.id, mode)

    def _kept_text(self, text: str, caller: Caller) -> FileRecord:
        with self.store.files.upload() as upload:
            upload.write(text.encode("utf-8", "replace"))
            return self.store.files.add(caller.owner, TRAINING, "text.txt", upload)


def _check_form(fields: Mapping[str, str]) -> None:
    """Refuse other purposes, and fields that would change what is kept."""
    purpose = fields.get("purpose")
    if purpose is None:
        raise invalid("Give the field purpose.", "purpose", "missing_required_parameter")
    if purpose != TRAINING:
        known = "only jobs write such files" if purpose == _PURPOSES[-1] else "nothing here uses such files"
        reason = known if purpose in _PURPOSES else f"it is {TRAINING}"
        raise invalid(f"The purpose {shown_value(purpose)} is not supported: {reason}.", "purpose")
    for name in fields:
        if name.startswith("expires_after"):
            message = "expires_after is not supported: files stay until they are deleted."
            raise ApiError(400, message, "unsupported_parameter", param="expires_after")
        if name != "purpose":
            raise ApiError(400, f"Unknown field {shown_value(name)}.", "unknown_parameter", param=name[:80])


def _no_file(file_id: str, param: str) -> ApiError:
    return invalid(f"invalid {param}: there is no file {shown_value(file_id)}.", param, "invalid_file")


@contextlib.contextmanager
def _api_errors() -> Iterator[None]:
    """The store's errors as those of the API."""
    try:
        yield
    except NotFoundError as error:
        raise _not_found(error) from error
    except QuotaError as error:
        parts = [error.what, *(f"{name}: {value}" for name in ("expected", "hint") if (value := getattr(error, name)))]
        raise ApiError(429, f"Over this key's quota: {'. '.join(parts)}.", "quota_exceeded") from error
    except JobError as error:
        raise invalid(f"This cannot be done: {error.what}.", code="invalid_job_state") from error
    except ConfigError as error:
        where = str(error.where).partition(" ")[0]
        param = _SETTINGS.get(where, where)
        what = ConfigError(error.what, where=param, expected=error.expected, got=error.got, hint=error.hint)
        raise from_text(what, param) from error
    except StoreError as error:
        log.error("store_error", error=error.what)
        raise ApiError(503, "The store of jobs does not answer.", "storage_failed", retry_after_s=5) from error


def _not_found(error: NotFoundError) -> ApiError:
    param, shown = str(error.where), shown_value(str(error.got))
    if param == "file_id":
        return ApiError(404, f"No such File object: {shown}.", "file_not_found", param="file_id")
    if param == "inspection_id":
        return ApiError(404, f"There is no inspection {shown}.", "inspection_not_found", param="inspection_id")
    if param == "fine_tuning_job_id":
        return ApiError(404, f"Could not find fine tune: {shown}.", "fine_tune_not_found", param="fine_tuning_job_id")
    if param == "after":
        return invalid(f"after: there is no object {shown} in this list.", "after")
    return _no_file(str(error.got), param)
