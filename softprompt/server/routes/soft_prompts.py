"""/v1/soft_prompts: what is on disk and what is loaded, for the admin. By name only: no paths, URLs or tensors."""

from __future__ import annotations

import asyncio
from typing import Literal

from anyio.to_thread import run_sync
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from softprompt.server.catalogue import CatalogueEntry
from softprompt.server.error_responses import invalid
from softprompt.server.generation_stream import cancel_on_disconnect
from softprompt.server.openapi import responses
from softprompt.server.service import Service

PromptState = Literal["loaded", "on_disk", "unloaded", "unusable"]


class SoftPromptInfo(TypedDict):
    """A soft prompt.

    `form` is "embedding", "kv", or "router", which chooses one of several soft prompts for each text. `state`:
    "unloaded" was so by hand and is refused until it is put back; "unusable" has a `fault`. `in_use` counts requests
    that hold it.
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
    """All of them."""

    object: Literal["list"]
    data: list[SoftPromptInfo]


def add_prompts(app: FastAPI, service: Service) -> None:
    """Add the four routes."""

    @app.get("/v1/soft_prompts", responses=responses(SoftPromptList))
    async def prompts() -> JSONResponse:
        """Every soft prompt, also those that cannot be served."""
        entries = await run_sync(service.catalogue.entries)
        return JSONResponse({"object": "list", "data": [_row(service, entry) for entry in entries]})

    @app.get("/v1/soft_prompts/{name}", responses=responses(SoftPromptInfo))
    async def prompt(name: str) -> JSONResponse:
        """One of them."""
        return JSONResponse(_row(service, await service.entry(name)))

    @app.put("/v1/soft_prompts/{name}", responses=responses(SoftPromptInfo))
    async def load(name: str, request: Request) -> JSONResponse:
        """Read it from disk now: the first time, again after it was trained anew, or after it was unloaded."""
        if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
            raise invalid("This takes no body: soft prompts come from the server's own folder.")
        entry = await service.entry(name)
        deadline = asyncio.get_running_loop().time() + service.limits.deadline_s
        await cancel_on_disconnect(request.receive, deadline, service.load(name))
        return JSONResponse(_row(service, entry))

    @app.delete("/v1/soft_prompts/{name}", responses=responses(SoftPromptInfo))
    async def unload(name: str) -> JSONResponse:
        """Refuse it from now on; requests that hold it end in peace, and its files stay."""
        entry = await service.entry(name)
        service.library.unload(name)
        return JSONResponse(_row(service, entry))


def _row(service: Service, entry: CatalogueEntry) -> SoftPromptInfo:
    library = service.library
    users = library.users(entry.name)
    closed: PromptState = "unloaded" if library.is_closed(entry.name) else "unusable" if entry.fault else "on_disk"
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
        "pinned": entry.name in library.pinned,
        "in_use": users or 0,
    }
