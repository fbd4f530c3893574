"""Errors of requests as OpenAI's error object and an HTTP status.

A message is written here or comes from a typed error about the client's own text. It never holds a file's content, a
path or a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from typing_extensions import TypedDict  # pydantic reads it, and wants this one before Python 3.12

from softprompt.errors import EngineError, SoftpromptError

SHOWN_CHARS = 80  # characters of a client's text that a message repeats
_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_COMPARED_NAMES = 2000  # names compared with an unknown one, to suggest a close spelling


# Families of OpenAI's API that are not served, with the reason.
_UNSERVED = {
    "assistants": "Assistants are not supported: nothing is stored between requests.",
    "audio": "Audio is not supported: the model reads and writes text.",
    "batches": "Batches are not supported: nothing is stored between requests. Send the requests at the same time.",
    "embeddings": "Embeddings are not supported: a soft prompt steers answers, and was trained for nothing else.",
    "files": "Files need a server with fine-tuning jobs: softprompt serve --jobs.",
    "fine_tuning": "Fine-tuning needs a server with jobs: softprompt serve --jobs.",
    "images": "Images are not supported: the model reads and writes text.",
    "inspections": "Inspections need a server with workers: softprompt serve --jobs.",
    "moderations": "Moderation is not supported.",
    "rerank": "Reranking is not supported.",
    "threads": "Threads are not supported: nothing is stored between requests. Send the whole conversation.",
    "vector_stores": "Vector stores are not supported: nothing is stored between requests.",
}


class ErrorDetail(TypedDict):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(TypedDict):
    """The body of every error response."""

    error: ErrorDetail


class ApiError(EngineError):
    """An error response to a request.

    Args:
        status: HTTP status.
        message: one or two sentences for the client.
        code: identifies the error for programs, such as "model_not_found".
        param: the field of the request at fault.
        retry_after_s: seconds after which to retry, for 429 and 503.
    """

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.code, self.param = code, param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> ErrorReply:
        """The JSON body."""
        kind = _ERROR_TYPES.get(self.status) or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Additional HTTP headers."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        if self.status == 504 or self.code == "quota_exceeded":  # it would take as long again, or fail again
            headers["x-should-retry"] = "false"
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A 400 for a request with an invalid value."""
    return ApiError(400, message, code, param=param)


def from_text(error: SoftpromptError, param: str) -> ApiError:
    """A 400 from a typed error about the client's own text."""
    parts = [f"{error.where}: {error.what}" if error.where else error.what]
    parts += [f"{name}: {value}" for name in ("expected", "got", "hint") if (value := getattr(error, name)) is not None]
    return invalid(". ".join(parts), param)


def unknown_model(name: str, known: Iterable[str]) -> ApiError:
    """A 404 for an unknown model, suggesting known names with a close spelling."""
    near = difflib.get_close_matches(name, [k for _, k in zip(range(_COMPARED_NAMES), known, strict=False)], n=3)
    meant = f" Did you mean {' or '.join(map(repr, near))}?" if near and len(name) <= SHOWN_CHARS else ""
    return ApiError(404, f"The model {shown_value(name)} does not exist.{meant}", "model_not_found", param="model")


def unknown_prompt(name: str) -> ApiError:
    """A 404 for an unknown soft prompt."""
    return ApiError(404, f"There is no soft prompt {shown_value(name)}.", "soft_prompt_not_found", param="name")


def store_failed() -> ApiError:
    """A 503 while the store of soft prompts fails."""
    return ApiError(503, "The store of soft prompts does not answer.", "store_unavailable", retry_after_s=5)


def unknown_path(path: str) -> tuple[str, str]:
    """Message and code for a path that is none of this server's: some are those of other parts of OpenAI's API."""
    family = path.removeprefix("/v1").strip("/").partition("/")[0]
    if family in _UNSERVED:
        return f"{_UNSERVED[family]} This server answers /v1/chat/completions and /v1/completions.", "unsupported_path"
    if path != "/" and not path.startswith("/v1/") and family in {"chat", "completions", "models"}:
        return "There is no such path. The API is under /v1: a client's base URL ends with it.", "unknown_path"
    return "There is no such path.", "unknown_path"


def stopping() -> ApiError:
    """A 503 once the server is stopping."""
    return ApiError(503, "The server is stopping.", "stopping", retry_after_s=5)


def internal(request_id: str) -> ApiError:
    """A 500 that shows only the request's id, under which the log has the error."""
    return ApiError(500, f"The server failed. The request id is {request_id}.", "internal_error")


def shown_value(text: str) -> str:
    """A client's text for a message: quoted and shortened."""
    return repr(text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…")
