"""Receives the file of a multipart/form-data body: streamed to disk, with caps on bytes, fields and time.

Only this module reads such bodies. A file's name is a label, never a path.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from softprompt.errors import QuotaError
from softprompt.jobs.contents import Upload
from softprompt.server.error_responses import ApiError, invalid, shown_value
from softprompt.server.generation_stream import ClientGoneError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE_FIELD = "file"
MAX_FIELDS, MAX_FIELD_BYTES = 8, 1024  # of the form, beside the file
MAX_LABEL = 128  # characters of a file's name
FRAMING_BYTES = 16_384  # of a body, around the file: boundaries, headers and other fields
_UNPRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


@dataclass(frozen=True)
class ReceivedForm:
    """A form whose file is in its `Upload`.

    Attributes:
        filename: what the client calls the file.
        fields: the form's other fields.
    """

    filename: str
    fields: Mapping[str, str]


async def receive_file(request: Request, upload: Upload, within_s: float) -> ReceivedForm:
    """Write the body's file to an upload as it comes. Raises ApiError."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ApiError(415, "The body must not be compressed.", "unsupported_encoding")
    boundary, declared = _boundary(request), request.headers.get("content-length", "")
    most = upload.max_bytes + FRAMING_BYTES if upload.max_bytes else None
    if most is not None and declared.isdecimal() and int(declared[:20]) > most:
        raise _too_large(upload)
    try:
        form = _Form(boundary)
        async with asyncio.timeout(within_s):
            total = 0
            async for chunk in request.stream():
                total += len(chunk)
                if most is not None and total > most:
                    raise _too_large(upload)
                form.write(chunk)
                if part := form.taken():
                    await run_sync(upload.write, part)
    except TimeoutError as error:
        raise ApiError(408, f"The body took more than {within_s:g} s to arrive.", "body_timeout") from error
    except ClientDisconnect as error:
        raise ClientGoneError from error
    except FormParserError as error:
        raise invalid("The body is not valid multipart/form-data.", code="invalid_multipart") from error
    except QuotaError as error:
        raise _too_large(upload) from error
    form.check_complete()
    return ReceivedForm(label_of(form.filename), form.fields)


def label_of(name: str) -> str:
    """A client's file name as a label: its last part, without control characters, of bounded length."""
    last = re.split(r"[/\\]", _UNPRINTED.sub("", name))[-1].strip()
    return last[-MAX_LABEL:] if last.strip(".") else "upload"


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ApiError(415, "The content type must be multipart/form-data with a boundary.", "unsupported_media_type")
    return options[b"boundary"]


def _too_large(upload: Upload) -> ApiError:
    return ApiError(413, f"The file is larger than {upload.max_bytes} bytes.", "body_too_large", param=FILE_FIELD)


class _Form:
    """The parts of a body as they come: the file's bytes are handed on, other fields kept.

    Attributes:
        fields: complete fields.
        filename: of the file's part; "" before it has come.
    """

    def __init__(self, boundary: bytes) -> None:
        self._parser, self._ended = MultipartParser(boundary, self._callbacks()), False
        self.fields, self.filename = dict[str, str](), ""
        self._header, self._header_value = bytearray(), bytearray()
        self._disposition, self._name = b"", ""
        self._field, self._file = bytearray(), bytearray()
        self._seen = set[str]()

    def write(self, chunk: bytes) -> None:
        """Parse further bytes of the body. Raises ApiError, FormParserError."""
        self._parser.write(chunk)

    def taken(self) -> bytes:
        """The file's bytes that came since the last call."""
        part = bytes(self._file)
        self._file.clear()
        return part

    def check_complete(self) -> None:
        """Raises ApiError for a body that was cut off, or one without a file."""
        if not self._ended:
            raise invalid("The body ends before its closing boundary.", code="invalid_multipart")
        if FILE_FIELD not in self._seen:
            raise invalid("Give the field file.", FILE_FIELD, "missing_required_parameter")

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._take,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._disposition = b""
        self._field.clear()

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise invalid("A part of the body has no name.", code="invalid_multipart")
        self._name = options[b"name"].decode("utf-8", "replace")
        if self._name in self._seen:
            raise invalid(f"The field {shown_value(self._name)} is given twice.", code="invalid_multipart")
        if len(self._seen) == MAX_FIELDS:
            raise invalid(f"The body has more than {MAX_FIELDS} fields.", code="invalid_multipart")
        self._seen.add(self._name)
        if self._name == FILE_FIELD:
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace")

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE_FIELD:
            self._file += data[start:end]
            return
        self._field += data[start:end]
        if len(self._field) > MAX_FIELD_BYTES:
            raise invalid(f"The field {shown_value(self._name)} is too long.", code="invalid_multipart")

    def _end_part(self) -> None:
        if self._name != FILE_FIELD:
            try:
                self.fields[self._name] = self._field.decode()
            except UnicodeDecodeError as error:
                raise invalid(f"The field {shown_value(self._name)} is not UTF-8.", code="invalid_multipart") from error

    def _end(self) -> None:
        self._ended = True
