"""Inspections of soft prompts in requests and replies."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field
from typing_extensions import TypedDict

from softprompt.jobs.inspection_records import InspectionRecord
from softprompt.server.fine_tuning_reply import JobErrorInfo
from softprompt.server.fine_tuning_request import FileId
from softprompt.server.strict import Strict

# Of `softprompt inspect --only`, but for likeness to other soft prompts, which may be other people's.
Reading: TypeAlias = Literal["behavior", "nearest", "drift", "worth", "layers", "heads", "attention", "lens", "leak"]
MAX_ROWS = 512


class InspectionRequest(Strict):
    """Body of POST /v1/inspections. `file` has rows with answers; `sections` are all readings unless they are given."""

    model: str
    file: FileId | None = None
    sections: Annotated[list[Reading], Field(max_length=16)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_ROWS)] | None = None


class InspectionInfo(TypedDict):
    """An inspection. `section` is the reading that a worker is at, null if none is."""

    id: str
    object: Literal["soft_prompt.inspection"]
    created_at: int
    started_at: int | None
    finished_at: int | None
    model: str
    file: str | None
    sections: list[str]
    limit: int
    status: Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
    section: str | None
    error: JobErrorInfo | None


class InspectionList(TypedDict):
    """A page of inspections, newest first."""

    object: Literal["list"]
    data: list[InspectionInfo]
    has_more: bool


class InspectionNumbers(TypedDict):
    """Every number of a report, as `softprompt inspect --json` prints it (docs/guides/study.md)."""

    name: str


class InspectionDeletion(TypedDict):
    """An inspection that is deleted."""

    id: str
    object: Literal["soft_prompt.inspection"]
    deleted: bool


def inspection_info(record: InspectionRecord) -> InspectionInfo:
    """An inspection as its object."""
    failure = record.error
    return {
        "id": record.id,
        "object": "soft_prompt.inspection",
        "created_at": record.created_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "model": record.model,
        "file": record.file,
        "sections": list(record.sections),
        "limit": record.limit,
        "status": record.status,
        "section": record.section or None,
        "error": None
        if failure is None
        else {"code": failure.code, "message": failure.message, "param": failure.param},
    }
