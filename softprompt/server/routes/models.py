"""Routes /v1/models: the base model and the soft prompts that requests can name."""

from __future__ import annotations

from typing import Literal

from fastapi import FastAPI
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from softprompt.server.error_responses import unknown_model
from softprompt.server.openapi import responses
from softprompt.server.service import Service


class ModelInfo(TypedDict):
    """A model as OpenAI lists it, with vLLM's `parent` and `root` for adapters."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["softprompt"]
    root: str
    parent: str | None
    max_model_len: int


class ModelList(TypedDict):
    """The list of models."""

    object: Literal["list"]
    data: list[ModelInfo]


def add_models(app: FastAPI, service: Service) -> None:
    """Add the two routes."""

    @app.get("/v1/models", responses=responses(ModelList))
    async def models() -> JSONResponse:
        """The base model, then every soft prompt for it."""
        return JSONResponse({"object": "list", "data": await _models(service)})

    @app.get("/v1/models/{model:path}", responses=responses(ModelInfo))
    async def model(model: str) -> JSONResponse:
        """One model, by any name that requests may use."""
        rows = {row["id"]: row for row in await _models(service)}
        row = rows.get(model) or rows.get(model.removeprefix(f"{service.name}:"))
        if row is None:
            raise unknown_model(model, rows)
        return JSONResponse(row)


async def _models(service: Service) -> list[ModelInfo]:
    base = _row(service, service.name, service.name, None, service.started)
    return [base] + [
        _row(service, service.model_id(entry), entry.name, service.name, entry.created)
        for entry in await service.models()
    ]


def _row(service: Service, name: str, root: str, parent: str | None, created: int) -> ModelInfo:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "softprompt",
        "root": root,
        "parent": parent,
        "max_model_len": service.engine.context,
    }
