"""Routes /v1/models: the base model and the soft prompts that requests can name."""

from __future__ import annotations

from typing import Literal

from fastapi import Depends, FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from softprompt.server.api_keys import Caller
from softprompt.server.catalogue import CatalogueEntry
from softprompt.server.error_responses import unknown_model
from softprompt.server.job_prompts import ServedModel
from softprompt.server.openapi import responses
from softprompt.server.prompt_files import PromptFiles
from softprompt.server.same_site import require_same_site
from softprompt.server.service import Service


class ModelInfo(TypedDict):
    """A model as OpenAI lists it, with vLLM's `parent` and `root` for adapters, and our own fields.

    `form` is "embedding", "kv", "router", or "base" for the base model. `n_tokens` counts the virtual tokens, which no
    usage does; null for a router, whose texts choose them. `fields` are those of the template: a text for several of
    them is a JSON object. Keys and values take `kv_bytes_per_token` bytes for each token, virtual ones included.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["softprompt"]
    root: str
    parent: str | None
    max_model_len: int
    form: str
    n_tokens: int | None
    fields: list[str]
    kv_bytes_per_token: int


class ModelList(TypedDict):
    """The list of models."""

    object: Literal["list"]
    data: list[ModelInfo]


class ModelDeletion(TypedDict):
    """A soft prompt that is deleted."""

    id: str
    object: Literal["model"]
    deleted: bool


def add_models(app: FastAPI, service: Service, origins: tuple[str, ...]) -> None:
    """Add the three routes."""
    files = PromptFiles(service)

    @app.get("/v1/models", responses=responses(ModelList))
    async def models(request: Request) -> JSONResponse:
        """The base model, then every soft prompt for it that the caller may use."""
        return JSONResponse({"object": "list", "data": await _models(service, request.state.caller)})

    @app.get("/v1/models/{model:path}", responses=responses(ModelInfo))
    async def model(model: str, request: Request) -> JSONResponse:
        """One model, by any name that requests may use."""
        caller: Caller = request.state.caller
        rows = {row["id"]: row for row in await _models(service, caller)}
        row = rows.get(model) or rows.get(model.removeprefix(f"{service.name}:"))
        if row is None and (job := await service.directory.job_prompt(model, caller)) is not None:
            row = _row(service, await service.directory.described(job))
        if row is None:
            raise unknown_model(model, rows)
        return JSONResponse(row)

    @app.delete(
        "/v1/models/{model:path}",
        responses=responses(ModelDeletion),
        dependencies=[Depends(require_same_site(origins))],
    )
    async def delete(model: str, request: Request) -> JSONResponse:
        """Delete a soft prompt with its files: a job's by its owner, any by the admin."""
        await files.delete(model, request.state.caller)
        return JSONResponse({"id": model, "object": "model", "deleted": True})


async def _models(service: Service, caller: Caller) -> list[ModelInfo]:
    base = _row(service, ServedModel(service.name, service.name, service.started))
    soft_prompts = [_row(service, served) for served in await service.directory.models(caller)]
    return [{**base, "parent": None, "form": "base", "n_tokens": 0}, *soft_prompts]


def _row(service: Service, model: ServedModel) -> ModelInfo:
    entry = model.entry or CatalogueEntry(model.root, model.created)
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "softprompt",
        "root": model.root,
        "parent": service.name,
        "max_model_len": service.engine.context,
        "form": entry.form,
        "n_tokens": None if entry.form == "router" else entry.n_tokens,
        "fields": list(entry.fields),
        "kv_bytes_per_token": service.kv_bytes_per_token,
    }
