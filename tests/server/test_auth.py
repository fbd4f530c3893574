"""Who is let in: denied by default, two kinds of keys, rates, hosts, headers; others reach nothing without a key."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from softprompt.errors import ConfigError
from softprompt.server import api_keys as keys_module
from softprompt.server.api_keys import ANYONE, ApiKeys, Caller, read_keys
from softprompt.server.auth import ADMIN as ADMIN_ROUTES
from softprompt.server.auth import PUBLIC
from softprompt.server.routes.studio import STUDIO_FILE, STUDIO_PAGE
from softprompt.server.uvicorn_server import check_address, default_hosts, is_loopback
from tests.support.live_server import ADMIN, USER, Live, live

NO_ONE = "a-key-that-no-one-has"


def routes(server: Live) -> list[tuple[str, str]]:
    """(method, path template) of everything the app answers."""
    found = [
        (method, getattr(route, "path"))  # noqa: B009
        for route in server.app.routes
        for method in sorted(getattr(route, "methods"))  # noqa: B009
    ]
    assert len(found) >= 12
    return found


def filled(path: str) -> str:
    return re.sub(r"\{\w+(:path)?\}", "review", path)


def test_every_route_is_closed_but_the_public_ones(server: Live) -> None:
    assert {"/livez", "/readyz", "/health", STUDIO_PAGE, STUDIO_FILE} == PUBLIC, (
        "whoever opens another one says so here, too"
    )
    for method, path in routes(server):
        for key in ("", NO_ONE, USER[:-1], USER + "x"):
            reply = server.ask(method, filled(path), key=key)
            if path in PUBLIC:
                assert reply.status == 200, path
            else:
                assert (reply.status, reply.code) == (401, "invalid_api_key"), path
                assert reply.headers["www-authenticate"] == "Bearer"


def test_the_admins_routes_are_closed_to_users(server: Live) -> None:
    admin = [(method, path) for method, path in routes(server) if path in ADMIN_ROUTES]
    assert len(admin) == 4
    for method, path in admin:
        reply = server.ask(method, filled(path))
        assert (reply.status, reply.code) == (403, "admin_key_needed")
    assert {path for _, path in routes(server) if "prompt" in path} == ADMIN_ROUTES
    assert server.ask("GET", "/v1/soft_prompts", key=ADMIN).status == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_every_key_is_a_tenant(path: str, stream: bool, server: Live) -> None:
    """So that the engine does not let one find what another has sent."""
    text = {"prompt": "A"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "A"}]}
    tenants = list[str]()
    for key in (USER, ADMIN, USER):
        body = {"model": "talk", "max_tokens": 1, "n": 2, "stream": stream} | text
        assert server.ask("POST", path, body, key).status == 200
        tenants += {job.tenant for job in server.engine.seen[-2:]}
    assert len(tenants) == 3 and tenants[0] == tenants[2] != tenants[1] and all(tenants)
    assert USER not in tenants


def test_a_key_in_its_own_header(server: Live) -> None:
    """X-Api-Key; Authorization goes before it, so that one place decides."""
    for key, status in ((USER, 200), (NO_ONE, 401), ("", 401)):
        assert server.ask("GET", "/v1/models", key="", headers={"x-api-key": key}).status == status
    assert server.ask("GET", "/v1/soft_prompts", key="", headers={"x-api-key": ADMIN}).status == 200
    assert server.ask("GET", "/v1/models", key=NO_ONE, headers={"x-api-key": USER}).status == 401


def test_a_stranger_sends_no_body(server: Live) -> None:
    """The key is looked at first."""
    assert server.ask("POST", "/v1/completions", b"x" * 2**21, key=NO_ONE).status == 401


def test_without_keys_everyone_is_a_user_and_no_one_the_admin(prompts: Path) -> None:
    with live(prompts, keys=ApiKeys()) as server:
        assert server.ask("GET", "/v1/models", key="").status == 200
        assert server.ask("GET", "/v1/soft_prompts", key="").status == 403
        server.idle()


@pytest.mark.parametrize(
    "header", ["", USER, f"Basic {USER}", "Bearer", "Bearer ", f"Bearer {USER} x", "Bearer \udcff"]
)
def test_headers_that_are_no_key(header: str) -> None:
    assert ApiKeys([USER]).caller(header) is None


def test_keys() -> None:
    known = ApiKeys([USER, "b" * 20], [ADMIN])
    user, admin = known.caller(f"Bearer {USER}"), known.caller(f"bearer  {ADMIN}")
    assert user is not None and admin is not None
    assert (user.admin, admin.admin) == (False, True)
    assert user.id not in USER and user.id != admin.id
    assert ApiKeys().caller("") == ANYONE == Caller("anonymous", False)


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the time says nothing about which one was near."""
    compared, real = list[bytes](), keys_module.compare_digest

    def counted(one: bytes, two: bytes) -> bool:
        compared.append(one)
        return real(one, two)

    monkeypatch.setattr(keys_module, "compare_digest", counted)
    known = ApiKeys([USER, "b" * 20], [ADMIN])
    for header in (f"Bearer {USER}", f"Bearer {NO_ONE}", "Basic x"):
        compared.clear()
        known.caller(header)
        assert len(compared) == 3 and all(len(digest) == 32 for digest in compared)


def test_keys_from_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n{'c' * 20}  # Ada\n\n")
    monkeypatch.setenv("SOFTPROMPT_API_KEYS", f"{USER}, {'b' * 20}")
    assert read_keys("SOFTPROMPT_API_KEYS", file) == [USER, "b" * 20, "c" * 20]
    monkeypatch.delenv("SOFTPROMPT_API_KEYS")
    for content, message in [
        ("short", "key 1 is not usable"),
        ("\u00e9" * 20, "not usable"),
        ("a b" * 9, "not usable"),
    ]:
        file.write_text(content)
        with pytest.raises(ConfigError, match=message) as caught:
            read_keys("SOFTPROMPT_API_KEYS", file)
        assert content not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys("SOFTPROMPT_API_KEYS", tmp_path / "none")


def test_a_rate_for_each_key(prompts: Path) -> None:
    with live(prompts, keys=ApiKeys([USER, "b" * 20]), rate="2/minute") as server:
        replies = [server.ask("GET", "/v1/models") for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        assert replies[-1].code == "rate_limit_exceeded"
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
        assert server.ask("GET", "/v1/models", key="b" * 20).status == 200
        assert server.ask("GET", "/metrics").status == server.ask("GET", "/livez", key="").status == 200
        server.idle()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", "", "127.0.0.1.example.org"])
def test_no_address_for_others_without_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="other machines"):
        check_address(host, ApiKeys())
    check_address(host, ApiKeys([USER]))
    assert default_hosts(host) == frozenset()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_this_machine_needs_none(host: str) -> None:
    check_address(host, ApiKeys())
    assert is_loopback(host)
    assert "localhost" in default_hosts(host)


def test_the_host_header(prompts: Path) -> None:
    """A web page that resolves its own name to this machine gets nothing, not even liveness."""
    with live(prompts, hosts=default_hosts("127.0.0.1")) as server:
        for host, status in [
            ("evil.example", 400),
            (f"evil.example:{server.port}", 400),
            ("", 400),
            (f"localhost:{server.port}", 200),
            ("LOCALHOST", 200),
            (f"[::1]:{server.port}", 200),
            ("[::1]", 200),
        ]:
            assert server.ask("GET", "/livez", headers={"host": host}).status == status, host
        assert server.ask("GET", "/livez", headers={"host": "evil.example"}).code == "unknown_host"
        server.idle()


def test_headers_of_every_reply(server: Live) -> None:
    for path in ("/livez", "/nope", "/v1/models"):
        headers = server.ask("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["cache-control"] == "no-store"
        assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
        assert "server" not in headers and "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2_3", True), ("x" * 65, False), ("a b", False), ("a<script>", False)]
)
def test_the_request_id_comes_back(given: str, kept: bool, server: Live) -> None:
    assert (server.ask("GET", "/livez", headers={"x-request-id": given}).headers["x-request-id"] == given) is kept


def test_cors_is_off(server: Live) -> None:
    origin = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    reply = server.ask("OPTIONS", "/v1/chat/completions", headers=origin)
    assert reply.status == 405 and "access-control-allow-origin" not in reply.headers


def test_serving_connects_to_no_one(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the test itself, which connects to the server."""
    reached, real = list[Any](), socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        reached.append(address)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    for model in ("review", "talk", "torn"):
        server.ask("POST", "/v1/completions", {"model": model, "prompt": "A", "max_tokens": 2})
    assert reached == [("127.0.0.1", server.port)] * 3
