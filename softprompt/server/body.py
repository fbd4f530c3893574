"""Reads a request's JSON body, limited in bytes, nesting depth and time before it is parsed."""

from __future__ import annotations

import asyncio
import re

from pydantic_core import from_json
from starlette.requests import Request

from softprompt.json_types import JSONObject
from softprompt.server.error_responses import ApiError, invalid, shown_value
from softprompt.server.limits import Limits

# Strings as a whole, even unterminated ones, so that brackets in them do not count and the search is linear.
_PARTS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


async def read_object(request: Request, limits: Limits) -> JSONObject:
    """The body's JSON object. Raises ApiError 400, 408, 413 or 415."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "The content type must be application/json.", "unsupported_media_type")
    if (encoding := request.headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
        message = f"The body must not be compressed, and has the content encoding {shown_value(encoding)}."
        raise ApiError(415, message, "unsupported_encoding")
    try:
        async with asyncio.timeout(limits.body_s):
            body = await _bounded(request, limits.body_bytes)
    except TimeoutError as error:
        raise ApiError(408, f"The body took more than {limits.body_s} s to arrive.", "body_timeout") from error
    if _is_deeper(body, limits.json_depth):
        raise invalid(f"The body is nested deeper than {limits.json_depth} brackets.", code="invalid_json")
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid("The body is not valid JSON.", code="invalid_json") from error
    if not isinstance(content, dict):
        raise invalid("The body must be a JSON object.", code="invalid_json")
    return content


async def _bounded(request: Request, most: int) -> bytes:
    declared = request.headers.get("content-length", "")
    body = bytearray()
    if not (declared.isdecimal() and int(declared[:20]) > most):
        async for part in request.stream():
            body += part
            if len(body) > most:
                break
        else:
            return bytes(body)
    raise ApiError(413, f"The body is larger than {most} bytes.", "body_too_large")


def _is_deeper(body: bytes, most: int) -> bool:
    depth = 0
    for part in _PARTS.finditer(body):
        first = part[0][:1]
        depth += (first in b"[{") - (first in b"]}")
        if depth > most:
            return True
    return False
