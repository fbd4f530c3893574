"""The whole journey on a tiny model: upload, faults, mend, train, live curve, compare, evaluate, inspect."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from tests.studio.test_train import ROWS, choose, numbers, payload, state
from tests.support.fine_tuning import Tuned
from tests.support.studio import StudioPage

if TYPE_CHECKING:
    from playwright.sync_api import Page

MOST_SECONDS = 180


def test_from_rows_to_a_soft_prompt_that_is_understood(tab: StudioPage, studio: Tuned, worker: None) -> None:
    began = time.monotonic()
    page = tab.open("train")
    choose(page, [*ROWS[:3], {"prompt": "no answer"}], "colors.jsonl")
    page.get_by_role("alert").filter(has_text="line 4").wait_for()
    choose(page, ROWS, "colors.jsonl")
    page.locator("mark.learned").nth(3).wait_for()
    page.get_by_label("Name", exact=True).fill("journey")
    page.get_by_label("Virtual tokens", exact=True).fill("4")
    page.get_by_label("Epochs", exact=True).fill("8")
    page.get_by_role("button", name="Start training").click()
    page.get_by_role("heading", name="journey", level=2).wait_for()
    state(page, "succeeded", 90)
    assert len(numbers(page)) > 1
    page.locator(".curve canvas").wait_for()
    result = page.get_by_label("Result", exact=True)
    shown = result.get_by_role("region", name="Comparison").get_by_role("row")
    shown.nth(3).wait_for()  # shown when all events have been read
    assert [row.split("\t")[0] for row in shown.all_inner_texts()][1:] == ["Base model", "Text prompt", "Soft prompt"]
    _compare(page)
    page.go_back()
    _evaluate(page)
    page.go_back()
    _inspect(page)
    tab.complaints.clear()  # of the browser, about the 400 of the faulty file
    assert page.locator("img").count() == 0 and page.title() != "run"
    assert time.monotonic() - began < MOST_SECONDS


def _compare(page: Page) -> None:
    """Base model, text prompt and soft prompt answer side by side, the text prompt being the one that was scored."""
    page.get_by_label("Result", exact=True).get_by_role("link", name="Compare", exact=True).click()
    page.get_by_role("heading", name="Compare", level=1).wait_for()
    page.get_by_label("Your turn").fill("Color 30?")
    page.get_by_role("button", name="Send").click()
    page.wait_for_function("() => document.querySelectorAll('.answer-column .answer').length === 3")
    titles = page.locator(".answer-column").get_by_role("heading").all_inner_texts()
    assert titles[:2] == ["Base model", "Text prompt"] and "journey" in titles[2]
    assert "Color" in (re.search(r"text=([^&]*)", page.url) or [""])[0]


def _evaluate(page: Page) -> None:
    page.get_by_label("Result", exact=True).get_by_role("link", name="Evaluate").click()
    page.get_by_role("heading", name="Evaluate", level=1).wait_for()
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_role("button", name="Start anew").wait_for(timeout=180_000)
    assert page.get_by_role("row").count() >= len(ROWS)


def _inspect(page: Page) -> None:
    page.get_by_label("Result", exact=True).get_by_role("link", name="Inspect").click()
    page.get_by_role("heading", name="Inspect", level=1).wait_for()
    chosen = page.get_by_label("Soft prompt", exact=True)
    chosen.wait_for()
    assert "journey" in chosen.input_value()
    page.get_by_role("form").get_by_text("Readings", exact=True).first.click()
    for name in ("behavior", "worth", "layers", "heads", "attention", "lens", "leak"):
        page.locator(f"input[value={name}]").uncheck()
    page.get_by_role("button", name="Inspect", exact=True).click()
    page.frame_locator("iframe").get_by_role("heading", level=1).wait_for(timeout=240_000)


def test_training_with_the_keyboard_alone(tab: StudioPage, studio: Tuned, worker: None) -> None:
    """From the file to Compare; every control is reached with Tab, and its focus is seen."""
    page = tab.open("train")
    page.get_by_label("Rows to learn from", exact=True).wait_for(state="attached")
    _tab_to(page, "input[type=file]")
    with page.expect_file_chooser() as choosing:
        page.keyboard.press("Space")
    choosing.value.set_files(
        [{"name": "keys.jsonl", "mimeType": "application/jsonl", "buffer": payload(ROWS)["buffer"]}]
    )
    page.locator("mark.learned").first.wait_for()
    for name, text in (("suffix", "keys"), ("n_tokens", "4"), ("n_epochs", "8")):
        _tab_to(page, f"input[name={name}]")
        page.keyboard.type(text)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="keys", level=2).wait_for()
    state(page, "succeeded", 90)
    _tab_to(page, "a.primary")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Compare", level=1).wait_for()


def _tab_to(page: Page, selector: str) -> None:
    """Press Tab until the focus is on such an element."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            seen = page.evaluate(
                """() => {
                  const at = document.activeElement;
                  const isSeen = (each) => each && getComputedStyle(each).outlineStyle !== "none";
                  return [at, at.nextElementSibling].some(isSeen);
                }"""
            )
            assert seen, f"the focus on {selector} is not seen"
            return
    raise AssertionError(f"{selector} is not reached")
