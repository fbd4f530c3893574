"""Routes /studio: a page over the public API. It is static, holds nothing of anybody, and needs no key; the API does.

Its files are read once, from the package. A request's path is looked up among their names and never becomes a path.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from softprompt.server.error_responses import ApiError, unknown_path

STUDIO_PAGE, STUDIO_FILE = "/studio", "/studio/{file:path}"
_INDEX = "index.html"
_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class ReportHashes:
    """Hashes, as a content policy writes them, of what the reports of inspections hold besides plain HTML.

    A report is shown in a sandboxed frame, which inherits the policy of the page around it.

    Attributes:
        style: of the one style sheet.
        script: of the one script.
    """

    style: str
    script: str


@dataclass(frozen=True)
class _StudioFile:
    content: bytes
    media_type: str
    etag: str


def add_studio(app: FastAPI, reports: ReportHashes | None) -> None:
    """Add the routes.

    Args:
        reports: the inspections' reports that the page may show.
    """
    files = studio_files()
    policy = studio_policy(reports)

    @app.head(STUDIO_PAGE, include_in_schema=False)
    @app.get(STUDIO_PAGE, include_in_schema=False)
    async def page(request: Request) -> Response:
        """The page, under an address with a slash, so that those within it are relative."""
        if not request.scope["raw_path"].split(b"?")[0].endswith(b"/"):
            return RedirectResponse("studio/", 308)
        return _response(files[_INDEX], request, policy)

    @app.head(STUDIO_FILE, include_in_schema=False)
    @app.get(STUDIO_FILE, include_in_schema=False)
    async def one(file: str, request: Request) -> Response:
        """One of the page's files."""
        found = files.get(file)
        if found is None:
            raise ApiError(404, *unknown_path(request.url.path))
        return _response(found, request, policy)


def studio_policy(reports: ReportHashes | None) -> str:
    """The content security policy: files of this server, its API, and the parts of reports by their hashes."""
    style, script = ("", "") if reports is None else (f" {reports.style}", f" {reports.script}")
    return (
        f"default-src 'none'; script-src 'self'{script}; style-src 'self'{style}; img-src 'self' data:; "
        "connect-src 'self'; frame-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def studio_files() -> Mapping[str, _StudioFile]:
    """The page's files, by their paths under /studio."""
    return dict(_read(importlib.resources.files("softprompt.server").joinpath("studio"), ""))


def _read(folder: Traversable, prefix: str) -> Iterator[tuple[str, _StudioFile]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _read(entry, f"{prefix}{entry.name}/")
        elif (media_type := _TYPES.get(entry.name.rpartition(".")[2])) is not None:
            content = entry.read_bytes()
            yield (
                f"{prefix}{entry.name}",
                _StudioFile(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"'),
            )


def _response(file: _StudioFile, request: Request, policy: str) -> Response:
    headers: dict[str, str] = request.state.headers  # which go over those of the response
    headers["content-security-policy"] = policy
    headers["cache-control"] = "no-cache"  # the browser asks each time; 304 if nothing has changed
    headers["etag"] = file.etag
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304)
    return Response(file.content, media_type=file.media_type)
