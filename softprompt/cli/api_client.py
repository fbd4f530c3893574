"""Calls of a server that speaks OpenAI's API: JSON in, JSON out, mistakes in the server's own words."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from softprompt.errors import ConfigError, JobError, NotFoundError, UnreachableError
from softprompt.json_types import JSONObject

KEY_NAMES = ("SOFTPROMPT_API_KEY", "OPENAI_API_KEY")  # environment variables
_TIMEOUT_S = 60
_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ApiClient:
    """A server's API.

    Args:
        url: of the server, with or without /v1.
    """

    url: str

    def call(self, method: str, path: str, query: Mapping[str, object] | None = None) -> JSONObject:
        """The reply to a request without a body.

        Raises ConfigError for what is no URL, UnreachableError if nobody answers, NotFoundError for 404, and JobError
        with the server's message for other errors.
        """
        base = self.url.rstrip("/")
        if urlsplit(base).scheme not in {"http", "https"}:
            raise ConfigError("not a URL of a server", where="--url", expected="http://HOST:PORT", got=self.url)
        base = base if base.endswith("/v1") else f"{base}/v1"
        asked = urlencode({key: value for key, value in (query or {}).items() if value is not None})
        request = urllib.request.Request(f"{base}{path}{'?' * bool(asked)}{asked}", method=method)  # noqa: S310
        key = next(filter(None, map(os.environ.get, KEY_NAMES)), "")
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310 - checked above
                return _object(response.read(_MAX_BYTES), base)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.code, error.read(_MAX_BYTES), base, bool(key)) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            hint = "softprompt serve --jobs starts one here; --url names another"
            raise UnreachableError("the server does not answer", where=base, got=reason, hint=hint) from error


def _object(body: bytes, where: str) -> JSONObject:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise UnreachableError("the server's reply is no JSON", where=where, hint="is --url right?") from error
    if not isinstance(found, dict):
        raise UnreachableError("the server's reply is no JSON object", where=where, hint="is --url right?")
    return found


def _refusal(code: int, body: bytes, where: str, has_key: bool) -> Exception:
    """The error of a reply that is none of success."""
    try:
        error = _object(body, where).get("error")
    except UnreachableError:
        error = None
    message = str(error.get("message")) if isinstance(error, dict) else f"HTTP {code}"
    if code == 401:
        hint = "the key is not known there" if has_key else f"put a key into {' or '.join(KEY_NAMES)}"
        return ConfigError(message, where=where, hint=hint)
    return (NotFoundError if code == 404 else JobError)(message, where=where)
