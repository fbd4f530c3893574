"""Authentication and authorization of routes. Denied by default: a route in none of these lists needs a user key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request

from softprompt.server.api_keys import ApiKeys
from softprompt.server.error_responses import ApiError
from softprompt.server.rate_limit import RateLimit

PUBLIC = frozenset({"/livez", "/readyz", "/health", "/studio", "/studio/{file:path}"})
ADMIN = frozenset({"/v1/soft_prompts", "/v1/soft_prompts/{name}"})
UNCOUNTED = frozenset({"/metrics", "/version"})  # exempt from the rate limit, and answered while the server stops


def require_access(keys: ApiKeys, rate_limit: RateLimit) -> Callable[[Request], Awaitable[None]]:
    """The dependency of every route; sets `request.state.caller`. It raises ApiError 401, 403, 429 or 503."""

    async def authorize(request: Request) -> None:
        route = request.scope["route"].path
        if route in PUBLIC:
            return
        caller = keys.caller(_authorization(request))
        if caller is None:
            message = "A valid API key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY."
            raise ApiError(401, message, "invalid_api_key")
        request.state.log_fields["caller"] = caller.id
        if route in ADMIN and not caller.admin:
            raise ApiError(403, "This needs the admin's key.", "admin_key_needed")
        if route not in UNCOUNTED:
            rate_limit.count(caller)
        request.state.caller = caller

    return authorize


def _authorization(request: Request) -> str:
    """The Authorization header, or a key in the header that Azure's and Anthropic's clients send."""
    given = request.headers.get("authorization")
    return given if given is not None else f"Bearer {request.headers.get('x-api-key', '')}"
