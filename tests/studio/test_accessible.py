"""Every view for everybody: axe's rules of WCAG A and AA in both themes, narrow windows, the keyboard alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.studio.conftest import VIEWS
from tests.support.fine_tuning import Tuned
from tests.support.studio import StudioPage, wait_for_count

AXE = Path(__file__).parents[1] / "support" / "vendor" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
NARROW, WIDE = 375, 2560
CHECK = """async (rules) => {
  const options = {runOnly: {type: "tag", values: rules}, iframes: false, resultTypes: ["violations"]};
  const found = await axe.run(document, options);
  return found.violations.flatMap((each) => each.nodes.map((node) => `${each.id}: ${node.html.slice(0, 200)}`));
}"""


def violations(tab: StudioPage) -> list[str]:
    tab.page.evaluate(AXE.read_text(encoding="utf-8") + ";0")
    return tab.page.evaluate(CHECK, RULES)


def overflow(tab: StudioPage) -> int:
    return tab.page.evaluate("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(view: str, dark: bool, owned: str, new_tab: Callable[..., StudioPage]) -> None:
    tab = new_tab(width=NARROW if dark else 1280, dark=dark)
    tab.open(view, **({"name": owned} if view == "prompts" else {}))
    tab.page.wait_for_load_state("networkidle")
    assert violations(tab) == []
    assert overflow(tab) == 0


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_nothing_scrolls_sideways(width: int, owned: str, new_tab: Callable[..., StudioPage]) -> None:
    tab = new_tab(width=width)
    for view in VIEWS:
        tab.open(view, **({"name": owned} if view == "prompts" else {}))
        tab.page.wait_for_load_state("networkidle")
        assert overflow(tab) == 0, view


def test_the_keyboard_alone(studio: Tuned, owned: str, tab: StudioPage) -> None:
    """Skip link, navigation, search, a prompt, its dialog and back; the focus is always seen."""
    page = tab.open("prompts")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    page.keyboard.type("seen")
    link = page.get_by_role("table").get_by_role("link")
    wait_for_count(page.locator("tbody tr"), 1)
    for _ in range(10):
        page.keyboard.press("Tab")
        if link.first.evaluate("link => link === document.activeElement"):
            break
    assert link.first.evaluate("link => getComputedStyle(link).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.locator("h2:focus").get_by_text("seen").wait_for()
    delete = page.get_by_role("button", name="Delete…")
    delete.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Delete seen?")
    dialog.wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Cancel", "Enter by habit deletes nothing"
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert delete.evaluate("button => button === document.activeElement")
    assert studio.live.ask("GET", f"/v1/models/{owned}").status == 200
