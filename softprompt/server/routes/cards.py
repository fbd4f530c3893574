"""Routes of soft prompts as files: /v1/cards, /v1/curves and /v1/archives, by the names that requests call them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import IO, TYPE_CHECKING, Annotated, Literal

from anyio.to_thread import run_sync
from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from typing_extensions import TypedDict

from softprompt.prompts.card import Card
from softprompt.prompts.model_card import public_name
from softprompt.prompts.sharing import public_card
from softprompt.server.api_keys import Caller
from softprompt.server.error_responses import ApiError
from softprompt.server.job_prompts import ServedModel
from softprompt.server.learning_curve import CurvePoint, curve_of_job, curve_of_run
from softprompt.server.openapi import download, responses
from softprompt.server.prompt_files import PromptFiles, StoredModel
from softprompt.server.query import PageQuery, query_of, query_parameters
from softprompt.server.service import Service

if TYPE_CHECKING:
    from softprompt.jobs.store import JobStore

_CHUNK = 65_536


class CardQuery(PageQuery):
    """Of the list of cards: a text that names hold."""

    search: Annotated[str, Field(max_length=128)] = ""


class CardInfo(TypedDict):
    """What a soft prompt is. `id` is what requests call it.

    `job` is the fine-tuning job that made it. `readable` says whether this key may have its files and inspect it,
    `deletable` whether it may delete it. `card` is the whole card without paths, for those who may have the files.
    Of a router, and of one that cannot be read just now, `form` is "router" or "unknown", and the rest is empty.
    """

    id: str
    object: Literal["soft_prompt.card"]
    created: int
    name: str
    base: str
    form: str
    n_tokens: int
    method: str
    sha256: str
    template: dict[str, object]
    labels: list[str]
    metrics: dict[str, float]
    train_rows: int | None
    license: str | None
    job: str | None
    readable: bool
    deletable: bool
    card: dict[str, object] | None


class CardList(TypedDict):
    """A page of cards, newest first."""

    object: Literal["list"]
    data: list[CardInfo]
    has_more: bool


class CurveInfo(TypedDict):
    """The learning curve of a soft prompt; empty if its run is gone."""

    id: str
    object: Literal["soft_prompt.curve"]
    data: list[CurvePoint]


def add_cards(app: FastAPI, service: Service, jobs: JobStore | None) -> None:
    """Add the four routes.

    Args:
        jobs: knows the curves of the soft prompts that jobs made.
    """
    files = PromptFiles(service)

    @app.get("/v1/cards", responses=responses(CardList), openapi_extra=query_parameters(CardQuery))
    async def cards(request: Request) -> JSONResponse:
        """The soft prompts that the caller may use, newest first."""
        query, caller = query_of(CardQuery, request), request.state.caller
        models, has_more = await files.page(caller, query.search, query.after, query.limit)
        data = [await _listed(files, model, caller) for model in models]
        return JSONResponse({"object": "list", "data": data, "has_more": has_more})

    @app.get("/v1/cards/{model:path}", responses=responses(CardInfo))
    async def card(model: str, request: Request) -> JSONResponse:
        """What one soft prompt is."""
        caller: Caller = request.state.caller
        found = await files.find(model, caller)
        return JSONResponse(_info(found, await files.card(found), caller))

    @app.get("/v1/curves/{model:path}", responses=responses(CurveInfo))
    async def curve(model: str, request: Request) -> JSONResponse:
        """The losses of its training."""
        found = await files.find(model, request.state.caller)
        read = partial(curve_of_run, found.folder)
        if jobs is not None and found.job:
            read = partial(curve_of_job, jobs, found.job)
        return JSONResponse({"id": model, "object": "soft_prompt.curve", "data": await run_sync(read)})

    @app.get("/v1/archives/{model:path}", responses=download("application/zip"), response_class=StreamingResponse)
    async def archive(model: str, request: Request) -> StreamingResponse:
        """Its files as a zip, for its owner and the admin; unpacked into $SOFTPROMPT_HOME it is a saved soft prompt."""
        found = await files.readable(model, request.state.caller)
        headers = {"content-disposition": f'attachment; filename="{found.folder.name}.zip"'}
        return StreamingResponse(_chunks(await files.archive(found)), media_type="application/zip", headers=headers)


async def _listed(files: PromptFiles, model: ServedModel, caller: Caller) -> CardInfo:
    """A card for the list, where one that cannot be read is no reason to show none."""
    try:
        found = await files.find(model.id, caller, bring=False)
        return {**_info(found, await files.card(found), caller), "created": model.created, "card": None}
    except ApiError as error:
        form = "router" if error.status == 400 and "router" in error.message else "unknown"
        return _empty(model, form)


def _info(found: StoredModel, card: Card, caller: Caller) -> CardInfo:
    is_readable = found.is_readable(caller)
    rows = card.data.get("train_rows")
    return {
        "id": found.id,
        "object": "soft_prompt.card",
        "created": found.created,
        "name": card.name,
        "base": public_name(card.geometry.base),
        "form": card.form,
        "n_tokens": card.n_tokens,
        "method": str(card.method.get("name", "")),
        "sha256": card.sha256,
        "template": card.template,
        "labels": list(card.labels),
        "metrics": _numbers(card.metrics),
        "train_rows": rows if isinstance(rows, int) else None,
        "license": card.license,
        "job": found.job or None,
        "readable": is_readable,
        "deletable": found.is_deletable(caller),
        "card": public_card(card) if is_readable else None,
    }


def _empty(model: ServedModel, form: str) -> CardInfo:
    return {
        "id": model.id,
        "object": "soft_prompt.card",
        "created": model.created,
        "name": model.id,
        "base": "",
        "form": form,
        "n_tokens": 0,
        "method": "",
        "sha256": "",
        "template": {},
        "labels": [],
        "metrics": {},
        "train_rows": None,
        "license": None,
        "job": model.job or None,
        "readable": False,
        "deletable": False,
        "card": None,
    }


def _numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """The metrics that are finite numbers."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if not isinstance(value, bool) and math.isfinite(value)}


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while chunk := await run_sync(file.read, _CHUNK):
            yield chunk
