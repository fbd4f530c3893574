"""Cross-origin requests: which web pages a browser lets use this server. None, unless the operator names them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from softprompt.errors import ConfigError

ANY_ORIGIN = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*]+")
_EXPOSED = ("Retry-After", "X-Request-Id", "X-Should-Retry", "X-Softprompt-Ignored")


def parse_origins(texts: Iterable[str]) -> tuple[str, ...]:
    """Origins as browsers send them. Raises ConfigError for a text that is none.

    Args:
        texts: such as "https://chat.example.org" or "http://localhost:3000"; "*" is every web page.
    """
    origins = []
    for text in texts:
        origin = text.strip().lower().removesuffix("/")
        if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
            expected = "scheme://host[:port], such as http://localhost:3000, or *"
            raise ConfigError("not an origin", where="--allow-origin", expected=expected, got=text)
        origins.append(origin)
    return tuple(dict.fromkeys(origins))


def add_cors(app: FastAPI, origins: tuple[str, ...]) -> None:
    """Let pages of these origins read replies, errors included, and send the headers of OpenAI's clients.

    Keys travel in headers that a page sets itself. Credentials of the browser, such as cookies, are never allowed.
    """
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST", "PUT", "DELETE"),
        allow_headers=("*",),  # the preflight names back those it was asked for: Authorization, X-Stainless-…
        expose_headers=_EXPOSED,
        allow_private_network=True,
        allow_credentials=False,
    )
