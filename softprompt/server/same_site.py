"""Refuses requests that a web page of another origin sends without being asked by its user.

A browser sends forms and empty bodies to any address without asking the server first, and a server without keys would
take them. It names the page's origin, which is then this server's own or one of those that the operator allows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.requests import Request

from softprompt.server.cors import ANY_ORIGIN
from softprompt.server.error_responses import ApiError


def require_same_site(origins: tuple[str, ...]) -> Callable[[Request], Awaitable[None]]:
    """The dependency of routes that change something without a JSON body. It raises ApiError 403."""

    async def check(request: Request) -> None:
        origin = request.headers.get("origin", "").lower()
        own = urlsplit(origin).netloc == request.headers.get("host", "").lower()
        if origin and not own and origin not in origins and ANY_ORIGIN not in origins:
            message = "Web pages of other origins cannot do this. The operator can allow one: --allow-origin."
            raise ApiError(403, message, "origin_not_allowed")

    return check
