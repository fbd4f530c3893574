"""OpenAPI descriptions of routes that read their bodies themselves."""

from __future__ import annotations

from pydantic import BaseModel

from softprompt.json_types import JSON, JSONObject
from softprompt.server.error_responses import ErrorReply
from softprompt.server.schema import IGNORED, NEUTRAL, GenerationFields

ERROR_STATUSES = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)


# An event as FastAPI describes one; what it holds is JSON, but for the last.
_EVENT: dict[str, object] = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "A JSON object, or [DONE]."}, "event": {"type": "string"}},
    "required": ["data"],
}
# stream_options goes with stream: true.
_STREAMED: dict[str, object] = {
    "if": {"properties": {"stream_options": {"type": "object"}}, "required": ["stream_options"]},
    "then": {"properties": {"stream": {"const": True}}, "required": ["stream"]},
}


def request_body(kind: type[BaseModel]) -> dict[str, object]:
    """The description of a JSON body, fields without effect included."""
    schema = _inlined(kind.model_json_schema())
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if issubclass(kind, GenerationFields) and isinstance(schema, dict) and isinstance(properties, dict):
        others: dict[str, object] = {name: {"enum": [None, *values]} for name, values in NEUTRAL.items()}
        others |= {name: {"description": "Has no effect."} for name in IGNORED}
        return _body({**schema, "properties": {**others, **properties}, "allOf": [_STREAMED]})
    return _body(schema)


def upload_body() -> dict[str, object]:
    """The description of a form with a file."""
    properties: dict[str, object] = {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"const": "fine-tune"},
    }
    schema: dict[str, object] = {"type": "object", "properties": properties, "required": ["file", "purpose"]}
    form = {"schema": {**schema, "additionalProperties": False}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": form}}}


def download(media_type: str = "application/octet-stream") -> dict[int | str, dict[str, object]]:
    """Descriptions of a download, and of the errors."""
    content = {media_type: {"schema": {"type": "string", "contentMediaType": media_type}}}
    return {**responses(ErrorReply), 200: {"description": "The file.", "content": content}}


def _body(schema: object) -> dict[str, object]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def responses(kind: type, *, stream: bool = False) -> dict[int | str, dict[str, object]]:
    """Descriptions of the success response, also as an event stream, and of the errors."""
    success: dict[str, object] = {"model": kind, "description": "The answer."}
    if stream:
        success["content"] = {"text/event-stream": {"itemSchema": _EVENT}}
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
