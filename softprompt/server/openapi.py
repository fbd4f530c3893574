"""OpenAPI descriptions of routes that read their bodies themselves."""

from __future__ import annotations

from pydantic import BaseModel

from softprompt.json_types import JSON, JSONObject
from softprompt.server.error_responses import ErrorReply

ERROR_STATUSES = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)


def request_body(kind: type[BaseModel]) -> dict[str, object]:
    """The description of a JSON body."""
    schema = kind.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(schema)}}}}


def responses(kind: type, *, stream: bool = False) -> dict[int | str, dict[str, object]]:
    """Descriptions of the success response, also as an event stream, and of the errors."""
    success: dict[str, object] = {"model": kind, "description": "The answer."}
    if stream:
        success["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    errors: dict[int | str, dict[str, object]] = {
        status: {"model": ErrorReply, "description": "Not answered."} for status in ERROR_STATUSES
    }
    return {200: success, **errors}


def _inlined(schema: JSONObject) -> JSON:
    """The schema with its own definitions inlined, since the document has no place for them."""
    definitions = schema.pop("$defs", None)

    def resolved(value: JSON) -> JSON:
        if isinstance(value, list):
            return [resolved(part) for part in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref")
        if isinstance(reference, str) and isinstance(definitions, dict):
            return resolved(definitions[reference.rpartition("/")[2]])
        return {name: resolved(part) for name, part in value.items()}

    return resolved(schema)
