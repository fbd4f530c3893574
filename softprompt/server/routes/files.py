"""Routes /v1/files: rows to train on, and the results of jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import BinaryIO
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from softprompt.jobs.records import FileRecord
from softprompt.server.api_keys import Caller
from softprompt.server.body import read_object
from softprompt.server.file_rows import FileRowList, row_page
from softprompt.server.fine_tuning import FineTuning
from softprompt.server.fine_tuning_reply import FileDeletion, FileInfo, FileList, file_info, page_info
from softprompt.server.job_preview import PreviewInfo, PreviewRequest, parse_preview, preview_info
from softprompt.server.openapi import download, request_body, responses, upload_body
from softprompt.server.query import FileQuery, RowQuery, query_of, query_parameters
from softprompt.server.same_site import require_same_site

_CHUNK = 65_536


def add_files(app: FastAPI, tuning: FineTuning, origins: tuple[str, ...]) -> None:
    """Add the routes: OpenAI's five, the preview, and the rows."""
    files, same_site = tuning.store.files, [Depends(require_same_site(origins))]

    @app.post("/v1/files", responses=responses(FileInfo), openapi_extra=upload_body(), dependencies=same_site)
    async def upload(request: Request) -> JSONResponse:
        """Store rows to train on, or a text to distill, after every row was checked."""
        caller: Caller = request.state.caller
        with tuning.service.rate_limit.request(caller):
            return JSONResponse(file_info(await tuning.add_file(request, caller)))

    @app.get("/v1/files", responses=responses(FileList), openapi_extra=query_parameters(FileQuery))
    async def listed(request: Request) -> JSONResponse:
        """The caller's files."""
        query, caller = query_of(FileQuery, request), request.state.caller
        read = partial(
            files.list,
            caller.seen,
            purpose=query.purpose or None,
            after=query.after or None,
            limit=query.limit,
            newest_first=query.order == "desc",
        )
        page = await tuning.call(read)
        return JSONResponse(page_info(page, file_info, [file.id for file in page.items]))

    @app.get("/v1/files/{file_id}", responses=responses(FileInfo))
    async def one(file_id: str, request: Request) -> JSONResponse:
        """One file."""
        return JSONResponse(file_info(await found(file_id, request)))

    @app.delete("/v1/files/{file_id}", responses=responses(FileDeletion), dependencies=same_site)
    async def delete(file_id: str, request: Request) -> JSONResponse:
        """Delete a file; jobs that were made with it go on."""
        await tuning.call(partial(files.delete, file_id, request.state.caller.seen))
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    @app.post(
        "/v1/files/{file_id}/preview", responses=responses(PreviewInfo), openapi_extra=request_body(PreviewRequest)
    )
    async def preview(file_id: str, request: Request) -> JSONResponse:
        """What a job would do with a file: its first rows, the learned tokens marked, and the settings with reasons."""
        caller: Caller = request.state.caller
        fields = parse_preview(await read_object(request, tuning.service.limits))
        with tuning.service.rate_limit.request(caller):
            return JSONResponse(await preview_info(tuning, file_id, fields, caller))

    @app.get("/v1/files/{file_id}/content", responses=download(), response_class=StreamingResponse)
    async def content(file_id: str, request: Request) -> StreamingResponse:
        """What was uploaded, or the result of a job, as an attachment."""
        file = await found(file_id, request)
        opened = await tuning.call(lambda: files.path(file).open("rb"))
        headers = {"content-disposition": disposition(file.filename), "content-length": str(file.bytes)}
        return StreamingResponse(_chunks(opened), media_type="application/octet-stream", headers=headers)

    async def found(file_id: str, request: Request) -> FileRecord:
        return await tuning.call(partial(files.get, file_id, request.state.caller.seen))

    _add_rows(app, tuning)


def _add_rows(app: FastAPI, tuning: FineTuning) -> None:
    files = tuning.store.files

    @app.get("/v1/files/{file_id}/rows", responses=responses(FileRowList), openapi_extra=query_parameters(RowQuery))
    async def rows(file_id: str, request: Request) -> JSONResponse:
        """The rows of an uploaded file in one form, whatever shape they have: a conversation and its right answers."""
        query = query_of(RowQuery, request)
        file = await tuning.call(partial(files.get, file_id, request.state.caller.seen))
        return JSONResponse(await tuning.check(lambda: row_page(files.path(file), query.after, query.limit)))


def disposition(filename: str) -> str:
    """The Content-Disposition header of a download; whatever the name holds, it stays one header and one name."""
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "._- ") else "_" for char in filename)
    encoded = "" if plain == filename else f"; filename*=UTF-8''{quote(filename, safe='')}"
    return f'attachment; filename="{plain}"{encoded}'


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while chunk := await run_sync(file.read, _CHUNK):
            yield chunk
