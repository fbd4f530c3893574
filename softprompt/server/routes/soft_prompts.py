"""Routes /v1/soft_prompts for the admin: soft prompts on disk and their state. Requests hold names, never paths."""

from __future__ import annotations

from typing import Literal

from anyio.to_thread import run_sync
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from softprompt.server.catalogue import CatalogueEntry
from softprompt.server.error_responses import invalid
from softprompt.server.openapi import responses
from softprompt.server.service import Service

PromptState = Literal["loaded", "on_disk", "unloaded", "unusable"]


class SoftPromptInfo(TypedDict):
    """A soft prompt.

    `form` is "embedding", "kv", or "router", which chooses one of several soft prompts for each text. Of `state`,
    "unloaded" means refused until PUT, and "unusable" comes with a `fault`. `in_use` counts the requests that hold it.
    """

    id: str
    object: Literal["soft_prompt"]
    parent: str
    created: int
    form: str
    n_tokens: int
    sha256: str
    state: PromptState
    fault: str
    pinned: bool
    in_use: int


class SoftPromptList(TypedDict):
    """The list of soft prompts."""

    object: Literal["list"]
    data: list[SoftPromptInfo]


def add_prompts(app: FastAPI, service: Service) -> None:
    """Add the four routes."""

    @app.get("/v1/soft_prompts", responses=responses(SoftPromptList))
    async def prompts() -> JSONResponse:
        """All soft prompts, including those that cannot be served."""
        entries = await run_sync(service.catalogue.entries)
        return JSONResponse({"object": "list", "data": [_row(service, entry) for entry in entries]})

    @app.get("/v1/soft_prompts/{name}", responses=responses(SoftPromptInfo))
    async def prompt(name: str) -> JSONResponse:
        """One soft prompt."""
        return JSONResponse(_row(service, await service.directory.entry(name)))

    @app.put("/v1/soft_prompts/{name}", responses=responses(SoftPromptInfo))
    async def load(name: str, request: Request) -> JSONResponse:
        """Read it from disk now: for the first time, after it was trained again, or after it was unloaded."""
        if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
            raise invalid("This takes no body: soft prompts come from the server's own folder.")
        entry = await service.directory.entry(name)
        await service.interruptions(request.receive).run(service.directory.load(name))
        return JSONResponse(_row(service, entry))

    @app.delete("/v1/soft_prompts/{name}", responses=responses(SoftPromptInfo))
    async def unload(name: str) -> JSONResponse:
        """Refuse new requests for it. Requests that hold it finish, and its files stay."""
        entry = await service.directory.entry(name)
        service.prompt_cache.unload(name)
        return JSONResponse(_row(service, entry))


def _row(service: Service, entry: CatalogueEntry) -> SoftPromptInfo:
    cache = service.prompt_cache
    users = cache.users(entry.name)
    closed: PromptState = "unloaded" if cache.is_closed(entry.name) else "unusable" if entry.fault else "on_disk"
    return {
        "id": entry.name,
        "object": "soft_prompt",
        "parent": service.name,
        "created": entry.created,
        "form": entry.form,
        "n_tokens": entry.n_tokens,
        "sha256": entry.sha256,
        "state": closed if users is None else "loaded",
        "fault": entry.fault,
        "pinned": entry.name in cache.pinned,
        "in_use": users or 0,
    }
