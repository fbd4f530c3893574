"""The view Prompts: list, search, card, curve, files, deletion; what others wrote stays text."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from softprompt.data.template import Template
from tests.support.fine_tuning import OTHER, Tuned, succeed_with
from tests.support.live_server import save_prompt
from tests.support.studio import StudioPage, wait_for_count

EVIL = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


def test_list_search_and_card(owned: str, tab: StudioPage) -> None:
    """What is chosen and searched for stands in the address and outlives a reload."""
    page = tab.open("prompts")
    rows = page.locator("tbody tr")
    rows.first.wait_for()
    assert rows.count() >= 5
    page.get_by_label("Search by name").fill("SEE")
    wait_for_count(rows, 1)
    page.get_by_role("link", name="seen").click()
    card = page.get_by_role("article", name="seen")
    card.get_by_text("4 virtual tokens").or_(card.get_by_text("virtual tokens")).first.wait_for()
    assert owned in card.inner_text()
    card.get_by_text("The numbers").click()
    assert "0.5000" in card.get_by_role("region", name="Learning curve").inner_text()
    page.reload()
    page.get_by_role("article", name="seen").wait_for()
    assert page.get_by_label("Search by name").input_value() == "SEE" and "name=" in page.url
    page.get_by_label("Search by name").fill("no such name")
    page.get_by_role("heading", name="No name has this in it").wait_for()


def test_nobody_elses_actions(tab: StudioPage) -> None:
    """The operator's soft prompt: to look at and to compare."""
    card = tab.open("prompts", name="talk").get_by_role("article", name="talk")
    card.get_by_role("link", name="Compare").wait_for()
    assert (
        card.get_by_role("button", name="Delete…").count() == card.get_by_role("button", name="Download").count() == 0
    )
    assert card.get_by_role("link", name="Inspect").count() == 0


def test_no_prompts_yet(new_tab: Callable[..., StudioPage], studio: Tuned) -> None:
    """An empty list says what to do."""
    tab = new_tab(OTHER)
    tab.page.route("**/v1/cards?*", lambda route: route.fulfill(json={"object": "list", "data": [], "has_more": False}))
    page = tab.open("prompts")
    page.get_by_role("heading", name="No soft prompts yet").wait_for()
    page.get_by_role("main").get_by_role("link", name="Train").click()
    page.get_by_role("heading", name="Train", level=1).wait_for()


def test_download(owned: str, tab: StudioPage, tmp_path: Path) -> None:
    page = tab.open("prompts", name=owned)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download").click()
    assert waiting.value.suggested_filename == "seen.zip"
    waiting.value.save_as(tmp_path / "seen.zip")
    with zipfile.ZipFile(tmp_path / "seen.zip") as archive:
        assert {Path(name).name for name in archive.namelist()} == {"card.json", "prompt.safetensors", "README.md"}


def test_delete_in_two_tabs(studio: Tuned, new_tab: Callable[..., StudioPage]) -> None:
    """It asks first; another tab that still shows it gets the API's words."""
    name = succeed_with(studio, "short-lived")
    first, second = new_tab(), new_tab()
    for tab in (first, second):
        tab.open("prompts", name=name).get_by_role("article", name="short-lived").wait_for()
    first.page.get_by_role("button", name="Delete…").click()
    first.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    first.page.get_by_role("article", name="short-lived").wait_for(state="detached")
    assert studio.live.ask("GET", f"/v1/models/{name}").status == 404
    assert "name=" not in first.page.url and first.page.get_by_role("link", name="short-lived").count() == 0
    second.page.get_by_role("button", name="Delete…").click()
    second.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    assert "does not exist" in second.page.get_by_role("alert").inner_text()
    second.complaints.clear()  # of the browser, about the 404


def test_what_others_wrote_stays_text(studio: Tuned, tab: StudioPage) -> None:
    folder = studio.live.service.catalogue.path("talk")
    assert folder is not None
    save_prompt(folder.with_name("evil"), "kv", Template("text", EVIL + "{text}"), 5, studio.lm)
    page = tab.open("prompts", name="evil")
    page.get_by_role("article", name="evil").get_by_text("<script>").first.wait_for()
    assert page.title() == "Prompts · softprompt studio"
    assert page.locator("main img, main script").count() == 0


def test_the_commands_are_true(owned: str, tab: StudioPage, studio: Tuned) -> None:
    """The curl line of the card names the key's variable, never the key, and its address answers."""
    page = tab.open("prompts", name=owned)
    page.get_by_role("article").get_by_text("As a command").click()
    line = page.get_by_role("article").get_by_label("curl line", exact=True).text_content() or ""
    assert "$SOFTPROMPT_API_KEY" in line and "-o seen.zip" in line
    path = next(word for word in line.split() if word.strip("'").startswith("http")).strip("'")
    assert studio.live.ask("GET", path.removeprefix(studio.live.url)).status == 200
