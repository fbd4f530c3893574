"""Distill: a pasted or dropped text, what it costs, and how much of its effect a few tokens keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.jobs.conftest import conversation_rows
from tests.studio.test_train import create, state, upload
from tests.support.fine_tuning import Tuned
from tests.support.live_server import BASE
from tests.support.shell import done
from tests.support.studio import StudioPage

if TYPE_CHECKING:
    from playwright.sync_api import Page

TEXT = "A color. <img src=x>"  # the tiny model's context is short


def read(page: Page, text: str = TEXT) -> None:
    page.get_by_label("Paste a text").fill(text)
    page.get_by_role("button", name="Read this text").click()
    page.get_by_role("button", name="Distill", exact=True).wait_for()


def test_a_pasted_text_says_what_it_costs(tab: StudioPage) -> None:
    page = tab.open("distill")
    page.get_by_label("Paste a text").fill(TEXT)
    page.reload()
    assert page.get_by_label("Paste a text").input_value() == TEXT
    read(page)
    page.get_by_text(f"{len(TEXT)} tokens (").wait_for()
    page.get_by_text("text — the whole text fits in the model's context").wait_for()
    assert page.get_by_label("The beginning of the text").inner_text() == TEXT
    page.get_by_label("Virtual tokens", exact=True).fill("4")
    page.get_by_text("become 4 virtual tokens").wait_for()
    assert page.locator("img").count() == 0 and page.title() != "run"


def test_an_empty_text_is_refused(tab: StudioPage) -> None:
    page = tab.open("distill")
    page.get_by_role("button", name="Read this text").click()
    page.get_by_role("alert").filter(has_text="The text is empty.").wait_for()


def test_a_long_text_is_read_in_chunks(tab: StudioPage) -> None:
    page = tab.open("distill")
    read(page, "Answer with a color. " * 30)
    page.get_by_text("document — longer than the context: it is read in chunks").wait_for()
    page.get_by_label("Mode").select_option("text")
    page.get_by_role("alert").filter(has_text="too long for the model's context").wait_for()
    tab.complaints.clear()  # of the browser, about the 400


def test_the_commands_are_ones_that_the_command_line_takes(
    tab: StudioPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    Path("text.txt").write_text(TEXT)
    page = tab.open("distill")
    read(page)
    page.get_by_label("Virtual tokens", exact=True).fill("4")
    page.get_by_text("become 4 virtual tokens").wait_for()
    lines = [line for line in page.locator(".commands code").all_text_contents() if line]
    (cli,) = [line for line in lines if line.startswith("softprompt")]
    settings = done(*cli.split()[1:], "--print-config").stdout
    assert "text: text.txt" in settings and "sizes:" in settings
    (body,) = [line for line in lines if "/v1/fine_tuning/jobs" in line]
    sent = json.loads(body.partition(" -d '")[2].removesuffix("'"))
    assert sent["model"] == BASE and sent["soft_prompt"]["n_tokens"] == 4
    assert sent["soft_prompt"]["distill"]["mode"] == "text"


def test_a_distillation_is_started(tab: StudioPage, studio: Tuned) -> None:
    page = tab.open("distill")
    read(page)
    page.get_by_label("Name", exact=True).fill("begun")
    page.get_by_role("button", name="Distill", exact=True).click()
    page.get_by_role("heading", name="begun", level=2).wait_for()
    (job,) = [each for each in studio.store.jobs(None).items if each.suffix == "begun"]
    studio.store.cancel_job(job.id, None)
    state(page, "cancelled")
    assert job.soft_prompt.distill is not None and job.soft_prompt.distill.mode == "text"


def test_how_much_is_kept_by_tokens(tab: StudioPage, studio: Tuned, worker: None) -> None:
    """Two sizes of one text stand in one picture; the shares are those of the jobs' events."""
    text, queries = upload(studio, TEXT, "text.txt"), upload(studio, conversation_rows(60).decode())
    shares: dict[int, str] = {}
    for tokens in (2, 4):
        own = {"n_tokens": tokens, "distill": {"file": text}}
        fields = {"training_file": queries, "soft_prompt": own, "hyperparameters": {"n_epochs": 1}}
        job = create(studio, suffix=f"size-{tokens}", **fields)
        page = tab.open("distill", job=job)
        state(page, "succeeded", 90)
        page.get_by_label("Fidelity", exact=True).wait_for()
        found = studio.store.events(job, None, limit=500).items
        (event,) = [each for each in found if each.data and "fidelity" in each.data]
        (soft,) = event.data["fidelity"]["soft"].values()  # type: ignore[index,call-overload,union-attr]
        shares[soft["prefix_tokens"]] = f"{round(100 * soft['recovered'])} %"  # type: ignore[index,call-overload]
    cells = (
        page.get_by_role("region", name="Fidelity by tokens")
        .locator("tbody tr")
        .evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
    )
    assert {int(row[1]): row[2] for row in cells[:-1]} == shares and cells[-1][2] == "100 %"
    assert page.locator("svg.fidelity circle").count() == len(shares)
    assert page.locator("svg.fidelity").get_attribute("role") == "img"
    assert page.locator("svg.fidelity line").count() == 3
    words = "".join(page.locator("svg.fidelity").evaluate("each => [...each.childNodes].map(node => node.textContent)"))
    assert "0 %50 %100 %" in words and "[object" not in words
    compare = page.get_by_role("link", name="Compare", exact=True).last.get_attribute("href") or ""
    assert "columns=base%2Ctext%2C" in compare and "place=system" in compare
    assert page.locator("img").count() == 0
