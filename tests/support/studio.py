"""A browser with the studio of a live server: tests see what a user sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from tests.support.fine_tuning import Tuned
from tests.support.live_server import USER

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page, Request

KEY = "softprompt-key"  # in the tab's sessionStorage


@dataclass
class StudioPage:
    """A tab.

    Attributes:
        page: Playwright's, whose `get_by_role` finds things as screen readers do.
        complaints: errors of the console, exceptions, and violations of the content policy; none are expected, and a
            test that provokes some clears them.
        requests: addresses of everything that was fetched.
    """

    page: Page
    server: Tuned
    complaints: list[str] = field(default_factory=list[str])
    requests: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.complaints.append(message.text)

        def asked(request: Request) -> None:
            self.requests.append(request.url)

        self.page.on("console", said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", asked)

    def address(self, view: str, **parameters: str) -> str:
        """A view's address."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        return f"{self.server.live.url}/studio/#/{view}{query}"

    def open(self, view: str, **parameters: str) -> Page:
        """Show a view, from its beginning."""
        self.page.goto("about:blank")
        self.page.goto(self.address(view, **parameters))
        self.page.get_by_role("heading", level=1).wait_for()
        return self.page

    def use_key(self, key: str = USER) -> None:
        """Have a key in this tab from the next page on."""
        if key:
            script = f"if (window === top && location.protocol !== 'about:') sessionStorage.setItem('{KEY}', '{key}')"
            self.page.add_init_script(script)


def wait_for_count(locator: Locator, count: int) -> None:
    """Wait until there are so many. `wait_for_function` cannot: it evaluates text, which the content policy refuses."""
    from playwright.sync_api import expect

    expect(locator).to_have_count(count)
