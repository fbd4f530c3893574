"""The folders of a running job: one for each attempt, so that a worker that lost the job cannot disturb the next one.

RUNS/JOB/3/                        of the third attempt; the folder of the second one, renamed
    data/train.jsonl, …            copies of the job's files under names of our own
    start/NAME/                    a copy of the soft prompt that it goes on from
    .runs/NAME/                    checkpoints, metrics.jsonl
    NAME/                          the soft prompt, once it is complete
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from softprompt.errors import StoreError
from softprompt.files import write_folder, writing
from softprompt.jobs.contents import Contents
from softprompt.jobs.plan import TEXT_FILE, TRAIN_FILE, VALIDATION_FILE
from softprompt.jobs.records import JobRecord
from softprompt.prompts import store
from softprompt.training.prepare import RUNS


@dataclass(frozen=True)
class Workspace:
    """The folder of an attempt.

    Attributes:
        prompt: where the run writes the soft prompt.
    """

    folder: Path
    prompt: Path

    @property
    def data(self) -> Path:
        """The folder of the job's files."""
        return self.folder / "data"

    @property
    def starts(self) -> Path:
        """The folder of the soft prompt that the run goes on from, which its card then calls by its name alone."""
        return self.folder / "start"

    @property
    def run(self) -> Path:
        """The folder of checkpoints and metrics."""
        return self.folder / RUNS / self.prompt.name

    @property
    def is_trained(self) -> bool:
        """Whether the soft prompt is complete."""
        return (self.prompt / store.CARD).is_file()


def open_workspace(runs: Path, contents: Contents, job: JobRecord) -> Workspace:
    """The folder of the job's attempt, with everything that earlier attempts have left. Raises StoreError."""
    folder = runs / job.id / str(job.attempt)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        before = [path for path in folder.parent.iterdir() if path.name.isdecimal() and int(path.name) < job.attempt]
        if before:
            os.rename(max(before, key=lambda path: int(path.name)), folder)
        workspace = Workspace(folder, folder / job.prompt)
        workspace.data.mkdir(parents=True, exist_ok=True)
        names = (
            (TRAIN_FILE, job.training_sha256),
            (VALIDATION_FILE, job.validation_sha256),
            (TEXT_FILE, job.text_sha256),
        )
        for name, sha256 in names:
            if sha256:
                _copy(contents.path(sha256), workspace.data / name)
    return workspace


def copy_start(workspace: Workspace, init_prompt: str, prompts: Path) -> str:
    """Copy the soft prompt that a job goes on from; returns its name in `Workspace.starts`.

    Args:
        init_prompt: a name in the folder `prompts`, or a path.

    Raises StoreError.
    """
    source = Path(init_prompt) if "/" in init_prompt else prompts / init_prompt
    name = source.name if store.PROMPT_NAME.fullmatch(source.name) else "start"
    if not (workspace.starts / name / store.CARD).is_file():
        if not (source / store.CARD).is_file():
            raise StoreError("the soft prompt to go on from is gone", where="model", got=source.name)
        write_folder(workspace.starts / name, lambda scratch: _copy_files(source, scratch))
    return name


def publish_prompt(workspace: Workspace, prompts: Path) -> None:
    """Copy the finished soft prompt to the prompts folder, all or nothing; done already is fine. Raises StoreError."""
    target = prompts / workspace.prompt.name
    if not (target / store.CARD).is_file():
        for half in prompts.glob(f".{target.name}.tmp-*"):  # of a worker that was killed here
            shutil.rmtree(half, ignore_errors=True)
        try:
            write_folder(target, lambda scratch: _copy_files(workspace.prompt, scratch))
        except StoreError:
            if not (target / store.CARD).is_file():  # else a worker that lost the job has just published the same
                raise


def _copy_files(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.copy2(path, target)


def _copy(source: Path, target: Path) -> None:
    """A copy, all or nothing, unless it is there."""
    if target.is_file():
        return
    scratch = target.with_suffix(".tmp")
    shutil.copyfile(source, scratch)
    os.replace(scratch, target)
