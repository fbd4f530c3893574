"""The page itself: its files, policy, weight and source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import softprompt.server
from softprompt.report.page import page_hashes
from softprompt.server.routes.studio import ReportHashes, studio_files, studio_policy
from tests.support.fine_tuning import Tuned
from tests.support.live_server import live

FOLDER = Path(softprompt.server.__file__).with_name("studio")
OUR_SCRIPTS = sorted(path for path in FOLDER.rglob("*.js") if "vendor" not in path.parts)
LONGEST = 350


def test_a_server_has_no_studio_unless_it_is_wanted(tmp_path: Path) -> None:
    with live(tmp_path) as server:
        assert server.ask("GET", "/studio/").status == 404


def test_files_of_the_package_and_nothing_else(studio: Tuned) -> None:
    """They need no key; whatever else a path says, it is unknown."""
    server = studio.live
    assert server.ask("GET", "/studio", key="").headers["location"] == "studio/"
    page = server.ask("GET", "/studio/", key="")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"] == studio_policy(ReportHashes(*page_hashes()))
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"] == "no-referrer"
    for name, file in studio_files().items():
        reply = server.ask("GET", f"/studio/{name}", key="")
        assert (reply.status, reply.raw) == (200, file.content)
        again = server.ask("GET", f"/studio/{name}", key="", headers={"if-none-match": reply.headers["etag"]})
        assert (again.status, again.raw) == (304, b"")
    for path in (
        "../app.py",
        "%2e%2e/app.py",
        "lib/../../app.py",
        "lib",
        "lib/",
        "/etc/passwd",
        "index.html%00",
        "\\app.py",
    ):
        assert server.ask("GET", f"/studio/{path}", key="").status == 404, path
    assert server.ask("POST", "/studio/", {}).status == 405


def test_the_policy_allows_only_this_server() -> None:
    policy = dict(part.strip().split(" ", 1) for part in studio_policy(None).split(";"))
    assert policy.pop("img-src") == "'self' data:"
    assert policy.pop("default-src") == policy.pop("base-uri") == policy.pop("form-action") == "'none'"
    assert policy.pop("frame-ancestors") == "'none'"
    assert policy.pop("frame-src") == "blob:", "reports, which inherit this policy"
    assert set(policy) == {"script-src", "style-src", "connect-src"} and set(policy.values()) == {"'self'"}


def test_weight() -> None:
    """All files together, before any compression."""
    assert sum(len(file.content) for file in studio_files().values()) < 300_000


@pytest.mark.parametrize("path", OUR_SCRIPTS, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_sources_hold_no_way_to_run_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser", text)
    assert not found and text.count("\n") <= LONGEST
    assert "cssText" not in text and not re.search(r"""\.setAttribute\(["'](style|on)""", text)
