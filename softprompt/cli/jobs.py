"""`softprompt jobs`: fine-tuning jobs of any server that speaks OpenAI's API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.api_client import ApiClient
from softprompt.cli.escape import escaped
from softprompt.cli.options import AsJson
from softprompt.json_types import JSON, JSONObject

jobs_app = typer.Typer(
    help="List, show, follow and cancel the fine-tuning jobs of a server. The key comes from SOFTPROMPT_API_KEY or "
    "OPENAI_API_KEY.",
    no_args_is_help=True,
)

Url = Annotated[str, typer.Option("--url", envvar="OPENAI_BASE_URL", help="The server.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, ftjob-…")]

_LOCAL = "http://127.0.0.1:8000"
_FINISHED = ("succeeded", "failed", "cancelled")
_PAGE = 100
_POLL_S = 1.0
_STYLES = {"succeeded": "green", "failed": "bold red", "cancelled": "yellow", "error": "bold red", "warn": "yellow"}


@jobs_app.command("list")
def list_jobs(
    url: Url = _LOCAL,
    limit: Annotated[int, typer.Option(min=1, max=100, help="The newest ones.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    found = _items(ApiClient(url).call("GET", "/fine_tuning/jobs", {"limit": limit}))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("job", "status", "created", "model"):
        table.add_column(name)
    for job in found:
        status = str(job.get("status"))
        name = job.get("fine_tuned_model") or job.get("model")
        table.add_row(str(job.get("id")), Text(status, _STYLES.get(status, "")), _when(job), escaped(str(name)))
    Console(soft_wrap=True).print(table)


@jobs_app.command("show")
def show_job(job: JobId, url: Url = _LOCAL, as_json: AsJson = False) -> None:
    """Show a job: its status, settings and result."""
    found = ApiClient(url).call("GET", _path(job))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    console = Console(soft_wrap=True)
    for name, value in found.items():
        if value not in (None, [], {}) and name not in {"object", "organization_id", "method"}:
            shown = _clock(value) if name.endswith(("_at", "_finish")) else _plain(value)
            console.print(Text(f"{name:<18}{escaped(shown)}"))


@jobs_app.command("events")
def job_events(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    url: Url = _LOCAL,
    as_json: AsJson = False,
) -> None:
    """Print a job's events, oldest first; with --follow as they come."""
    client, console = ApiClient(url), Console(soft_wrap=True)
    seen = set[str]()
    while True:
        ended = str(client.call("GET", _path(job)).get("status")) in _FINISHED
        for event in reversed(list(_new_events(client, job, seen))):
            if as_json:
                typer.echo(json.dumps(event))
                continue
            level = str(event.get("level"))
            console.print(Text(f"{_when(event)}  {escaped(str(event.get('message')))}", _STYLES.get(level, "")))
        if ended or not follow:
            return
        time.sleep(_POLL_S)


@jobs_app.command("cancel")
def cancel_job(job: JobId, url: Url = _LOCAL) -> None:
    """Cancel a job."""
    _change(job, url, "cancel")


@jobs_app.command("pause")
def pause_job(job: JobId, url: Url = _LOCAL) -> None:
    """Pause a job; it keeps its progress."""
    _change(job, url, "pause")


@jobs_app.command("resume")
def resume_job(job: JobId, url: Url = _LOCAL) -> None:
    """Let a paused job go on."""
    _change(job, url, "resume")


def _change(job: str, url: str, verb: str) -> None:
    found = ApiClient(url).call("POST", f"{_path(job)}/{verb}")
    Console(soft_wrap=True).print(Text(f"{found.get('id')}  {found.get('status')}"))


def _new_events(client: ApiClient, job: str, seen: set[str]) -> Iterator[JSONObject]:
    """Events that were not seen yet, newest first."""
    after: JSON = None
    while True:
        query: dict[str, object] = {"limit": _PAGE, "after": after}
        page = client.call("GET", f"{_path(job)}/events", query)
        found = _items(page)
        for event in found:
            if str(event.get("id")) in seen:
                return
            seen.add(str(event.get("id")))
            yield event
        if not found or not page.get("has_more"):
            return
        after = found[-1].get("id")


def _path(job: str) -> str:
    return f"/fine_tuning/jobs/{quote(job, safe='')}"


def _items(page: JSONObject) -> list[JSONObject]:
    data = page.get("data")
    return [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []


def _when(item: JSONObject) -> str:
    return _clock(item.get("created_at"))


def _clock(value: JSON) -> str:
    """Local time."""
    return datetime.fromtimestamp(value).strftime("%Y-%m-%d %H:%M:%S") if isinstance(value, int | float) else ""


def _plain(value: JSON) -> str:
    return value if isinstance(value, str) else json.dumps(value)
