"""`softprompt work`: a worker that trains the jobs of a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.options import Device


def work_command(
    store: Annotated[
        str, typer.Option("--store", help="The server's store of jobs: its folder, or the URL of its database.")
    ] = "jobs",
    store_files: Annotated[
        Path | None, typer.Option("--store-files", help="With a database's URL: the folder of its files, shared.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="The server's base model, if it lies elsewhere on this machine.")
    ] = "",
    device: Device = "auto",
    once: Annotated[bool, typer.Option("--once", help="End when no job waits.")] = False,
    lease: Annotated[
        float, typer.Option("--lease", min=1, help="Seconds without a sign of life after which others take the job.")
    ] = 60,
    log: Annotated[str, typer.Option("--log", help="json, console, or auto: console on a terminal.")] = "auto",
    parent: Annotated[int, typer.Option("--parent", hidden=True)] = 0,
) -> None:
    """Train the fine-tuning jobs of a server, one at a time, as `softprompt serve --jobs` does with --workers, and
    make its inspections.

    softprompt work --store jobs --device cuda

    Ctrl-C or SIGTERM end it after the training step it is in; the job goes on elsewhere from there.
    """
    from softprompt.jobs.store import JobStore
    from softprompt.jobs.worker import WorkerOptions, run_worker
    from softprompt.models.cores import limit_threads
    from softprompt.report.saved_report import inspect_saved
    from softprompt.server.logs import configure

    configure("json" if log == "json" or (log == "auto" and not sys.stderr.isatty()) else "console")
    limit_threads()
    opened = JobStore.open(store, store_files)
    run_worker(opened, WorkerOptions(device, once, parent, lease, model), inspect_saved)
