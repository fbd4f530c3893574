"""Inspections as values that do not change: what is wanted, how far it is, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from softprompt.jobs.records import JobFailure, Status


@dataclass(frozen=True)
class NewInspection:
    """An inspection to make.

    Attributes:
        base: name of the base model, as in `JobBase.name`.
        model: what requests call the soft prompt.
        prompt: its folder: a name in the prompts folder, or a path.
        file: id of a file with rows; None for those of its own run, or neutral texts.
        sections: readings, in the words of `softprompt inspect --only`; all if it is empty.
        limit: most rows.
    """

    owner: str
    base: str
    model: str
    prompt: str
    file: str | None
    sections: tuple[str, ...]
    limit: int


@dataclass(frozen=True)
class InspectionRecord:
    """An inspection in the database; fields that `NewInspection` has, too, mean the same.

    Attributes:
        created_at, started_at, finished_at: in seconds since 1970.
        sha256: content of the file when the inspection was made; "" is none.
        section: the reading that a worker is at; "" if none is.
        attempt, worker, lease_until: as of a job.
    """

    id: str
    owner: str
    created_at: int
    started_at: int | None
    finished_at: int | None
    base: str
    model: str
    prompt: str
    file: str | None
    sha256: str
    sections: tuple[str, ...]
    limit: int
    status: Status
    section: str
    error: JobFailure | None
    attempt: int
    worker: str
    lease_until: float


@dataclass(frozen=True)
class InspectionResult:
    """The result of an inspection.

    Attributes:
        report: a page, as `softprompt inspect --html` writes it.
        numbers: everything in it, as JSON text.
    """

    report: str
    numbers: str


@dataclass(frozen=True)
class InspectionInput:
    """An inspection with its files, for those who make it.

    Attributes:
        folder: of the soft prompt.
        name: what its owner calls it.
        rows: a file with rows; None for those of its own run, or neutral texts.
        sections: readings; all if it is empty.
        limit: most rows.
    """

    folder: Path
    name: str
    rows: Path | None
    sections: tuple[str, ...]
    limit: int
