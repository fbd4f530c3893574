"""The view Inspect, with a worker: from the form to the report, which can reach nothing."""

from __future__ import annotations

import re

from tests.support.fine_tuning import Tuned
from tests.support.studio import StudioPage


def test_from_the_form_to_the_report(studio: Tuned, worker: None, owned: str, tab: StudioPage) -> None:
    """A reload while it runs changes nothing; the report stands in a frame without an origin."""
    page = tab.open("inspect", model=owned)
    page.get_by_label("Soft prompt").wait_for()
    assert page.get_by_label("Soft prompt").input_value() == owned
    page.get_by_role("form").get_by_text("Readings", exact=True).first.click()
    for name in ("behavior", "worth", "layers", "heads", "attention", "lens", "leak"):
        page.locator(f"input[value={name}]").uncheck()
    page.get_by_role("button", name="Inspect").click()
    page.wait_for_url(re.compile("id=insp-"))
    page.reload()
    frame = page.frame_locator("iframe[title='Report of seen']")
    frame.get_by_role("heading", level=1).wait_for(timeout=120_000)
    assert "nearest" in frame.locator("body").inner_text().lower()
    styled = frame.locator("body").evaluate("body => getComputedStyle(body).maxWidth")
    assert styled != "none", "its style sheet is allowed"
    assert frame.get_by_role("button", name="Copy table").count() > 0, "its script runs"
    reached = frame.locator("body").evaluate(
        "() => { try { return parent.document.title } catch (error) { return error.name } }"
    )
    assert reached == "SecurityError"
    frame.locator("nav a").last.click()
    assert frame.locator("body").evaluate("() => scrollY") > 0, "links within it lead to its own headings"
    assert frame.get_by_role("heading", level=1).count() == 1
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download numbers").click()
    assert waiting.value.suggested_filename == "seen.inspect.json"
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.locator("iframe").wait_for(state="detached")
    assert studio.live.ask("GET", "/v1/inspections").json["data"] == []
