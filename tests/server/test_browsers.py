"""Web pages: a browser lets those use the server whose origin the operator names, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from softprompt.errors import ConfigError
from softprompt.server.cors import parse_origins
from tests.support.live_server import Live, live

CHAT, PAGE = "/v1/chat/completions", "http://localhost:3000"
SENT = "authorization,content-type,x-api-key,x-stainless-os"


@pytest.fixture(scope="module")
def open_to_a_page(prompts: Path) -> Iterator[Live]:
    with live(prompts, origins=(PAGE,), hosts=frozenset({"127.0.0.1"})) as server:
        yield server


def preflight(server: Live, origin: str, method: str = "POST") -> dict[str, str]:
    asked = {"origin": origin, "access-control-request-method": method, "access-control-request-headers": SENT}
    reply = server.ask("OPTIONS", CHAT, key="", headers=asked)
    assert (reply.status == 200) == ("access-control-allow-origin" in reply.headers)
    return {name.lower(): value for name, value in reply.headers.items()}


def test_a_preflight(open_to_a_page: Live) -> None:
    """It names the page, the method and the headers of OpenAI's client, and needs no key."""
    allowed = preflight(open_to_a_page, PAGE)
    assert allowed["access-control-allow-origin"] == PAGE and "origin" in allowed["vary"].lower()
    assert "POST" in allowed["access-control-allow-methods"]
    assert set(SENT.split(",")) <= set(allowed["access-control-allow-headers"].lower().replace(" ", "").split(","))
    assert "access-control-allow-credentials" not in allowed and allowed["x-request-id"]
    assert "access-control-allow-origin" not in preflight(open_to_a_page, "https://evil.example")


@pytest.mark.parametrize("path", [CHAT, "/nope", "/health"])
@pytest.mark.parametrize("key", ["", "wrong-key-of-somebody"])
def test_errors_can_be_read_by_the_page(path: str, key: str, open_to_a_page: Live) -> None:
    reply = open_to_a_page.ask("POST", path, {}, key=key, headers={"origin": PAGE})
    assert reply.status >= 400 and reply.code
    assert reply.headers["access-control-allow-origin"] == PAGE
    exposed = reply.headers["access-control-expose-headers"].lower()
    assert "x-request-id" in exposed and "retry-after" in exposed
    other = open_to_a_page.ask("POST", path, {}, key=key, headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_an_error_before_any_route(open_to_a_page: Live) -> None:
    """The Host check's; its message says which name and which option."""
    reply = open_to_a_page.ask("GET", "/health", headers={"origin": PAGE, "host": "shop.example:80"})
    assert (reply.status, reply.code) == (400, "unknown_host")
    assert "'shop.example'" in reply.json["error"]["message"] and "--allow-host" in reply.json["error"]["message"]
    assert reply.headers["access-control-allow-origin"] == PAGE


def test_every_page(prompts: Path) -> None:
    """With "*" still no credentials of the browser."""
    with live(prompts, origins=("*",)) as server:
        allowed = preflight(server, "https://any.example")
        assert allowed["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in allowed
        body = {"model": "talk", "prompt": "A", "max_tokens": 1}
        reply = server.ask("POST", "/v1/completions", body, headers={"origin": "https://any.example"})
        assert reply.status == 200 and reply.headers["access-control-allow-origin"] == "*"
        server.idle()


def test_no_page_unless_named(server: Live) -> None:
    reply = server.ask("OPTIONS", CHAT, headers={"origin": PAGE, "access-control-request-method": "POST"})
    assert reply.status == 405
    assert not [name for name in reply.headers if name.lower().startswith("access-control")]


def test_origins_are_checked() -> None:
    assert parse_origins(["HTTPS://Chat.Example.org/", "*", "https://chat.example.org"]) == (
        "https://chat.example.org",
        "*",
    )
    for wrong in ("localhost:3000", "https://a.example/path", "", "https://*.example"):
        with pytest.raises(ConfigError, match="not an origin"):
            parse_origins([wrong])
