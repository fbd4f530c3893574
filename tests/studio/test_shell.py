"""What all views share: navigation, the key, the theme, and a server that goes away."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.studio.conftest import VIEWS
from tests.support.live_server import USER
from tests.support.studio import KEY, StudioPage


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_opens(view: str, tab: StudioPage) -> None:
    page = tab.open(view)
    assert page.title().endswith("softprompt studio")
    assert page.locator("nav a[aria-current=page]").inner_text() == page.get_by_role("heading", level=1).inner_text()
    assert all(request.startswith((tab.server.live.url, "data:", "about:")) for request in tab.requests)


def test_a_server_that_goes_away_and_comes_back(tab: StudioPage) -> None:
    page = tab.open("prompts")
    page.context.set_offline(True)
    page.evaluate("import('/studio/lib/api.js').then(({api}) => api.get('/v1/models')).catch(() => {})")
    banner = page.locator("#banner")
    banner.wait_for()
    page.context.set_offline(False)
    banner.wait_for(state="hidden")
    tab.complaints.clear()  # of the browser, about the requests that failed


def test_the_key_stays_in_the_tab(new_tab: Callable[..., StudioPage]) -> None:
    """Asked for when the API wants one; never in the address or in what outlives the tab."""
    tab = new_tab(key="")
    page = tab.open("prompts")
    page.get_by_role("dialog", name="API key").locator("input").fill(USER)
    page.get_by_role("button", name="Use this key").click()
    page.get_by_role("link", name="talk").wait_for()
    assert page.evaluate(f"sessionStorage.getItem('{KEY}')") == USER
    assert USER not in page.url and USER not in str(tab.requests)
    assert page.evaluate("JSON.stringify(localStorage)") == "{}"
    assert page.evaluate("document.cookie") == ""
    tab.complaints.clear()  # of the browser, about the 401
