"""Train: files and their faults, what is learned and why, and a job that goes on whatever happens to the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.studio.test_accessible import NARROW, overflow, violations
from tests.support.fine_tuning import Tuned
from tests.support.live_server import BASE, USER
from tests.support.shell import done
from tests.support.studio import StudioPage

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

HTML = "<img src=x onerror=document.title='run'>"
ROWS = [{"prompt": f"Color {i}?", "completion": ("red", "blue")[i % 2]} for i in range(24)]
ROWS[0]["prompt"] = f"{HTML} {ROWS[0]['prompt']}"
PAIRS = [{"prompt": f"Color {i}?", "chosen": "red", "rejected": f"It is red. {HTML}"} for i in range(24)]
JOBS = "/v1/fine_tuning/jobs"
LONG = {"soft_prompt": {"n_tokens": 4, "minutes": 5}}  # of jobs that the test ends


def payload(rows: list[Any] | str, name: str = "rows.jsonl") -> Any:
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    return {"name": name, "mimeType": "application/jsonl", "buffer": text.encode()}


def choose(page: Page, rows: list[Any] | str, name: str = "rows.jsonl", label: str = "Rows to learn from") -> None:
    page.get_by_label(label, exact=True).set_input_files(payload(rows, name))


def upload(server: Tuned, rows: list[Any] | str = ROWS, name: str = "rows.jsonl") -> str:
    file = payload(rows, name)
    with server.client() as ai:
        return ai.files.create(file=(name, file["buffer"]), purpose="fine-tune").id


def create(server: Tuned, **fields: Any) -> str:
    body = {"model": BASE, "training_file": upload(server)} | fields
    reply = server.live.ask("POST", JOBS, body)
    assert reply.status == 200, reply.raw
    return reply.json["id"]


def state(page: Page, name: str, seconds: float = 30) -> None:
    page.locator(".view .toolbar .badge", has_text=re.compile(f"^{name}$")).wait_for(timeout=seconds * 1000)


@pytest.fixture
def long_job(studio: Tuned, worker: None) -> Iterator[str]:
    """A job that runs until the test's end."""
    job = create(studio, suffix="long", **LONG)
    yield job
    if not studio.store.job(job, None).is_finished:
        studio.store.cancel_job(job, None)
    end = time.monotonic() + 20
    while not studio.store.job(job, None).is_finished:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_faults_are_told_by_line_and_a_mended_file_goes_on(tab: StudioPage) -> None:
    page = tab.open("train")
    faulty = [{"prompt": HTML}, {"prompt": "a", "completion": "b"}, {"prompt": 3, "completion": "b"}]
    wrong = "".join(f"{json.dumps(row)}\n" for row in faulty) + f"not JSON {HTML}\n"
    choose(page, wrong, f"{HTML}.jsonl")
    alert = page.get_by_role("alert").filter(has=page.locator(".faults"))
    alert.wait_for()
    lines = alert.locator("li").all_inner_texts()
    assert [line.partition(":")[0] for line in lines[:3]] == ["line 1", "line 3", "line 4"]
    assert HTML in alert.inner_text()
    choose(page, ROWS, f"{HTML}.jsonl")
    page.get_by_role("list", name="The first rows as the model reads them").wait_for()
    assert page.get_by_role("heading", level=2).first.inner_text() == f"{HTML}.jsonl"
    tab.complaints.clear()  # of the browser, about the 400
    assert page.title() != "run" and page.locator("img").count() == 0


def test_what_is_learned_is_marked(tab: StudioPage, studio: Tuned) -> None:
    """The marked words are the answers, with their end; the first line's HTML is shown as it is written."""
    file = upload(studio)
    page = tab.open("train", file=file)
    rows = page.get_by_role("list", name="The first rows as the model reads them").get_by_role("listitem")
    rows.first.wait_for()
    found = studio.live.ask("POST", f"/v1/files/{file}/preview", {"rows": 3}).json["rows"]
    assert rows.count() == len(found)
    for i, row in enumerate(found):
        (learned,) = [piece["text"] for piece in row["pieces"] if piece["learned"]]
        assert learned in rows.nth(i).locator("mark").text_content()  # type: ignore[operator]
        assert f"{row['tokens']} tokens, {row['learned_tokens']} learned" in rows.nth(i).inner_text()
    assert HTML in rows.first.inner_text() and page.locator("img").count() == 0


def test_settings_say_what_auto_chooses_and_why(tab: StudioPage, studio: Tuned) -> None:
    file = upload(studio)
    page = tab.open("train", file=file)
    tokens = page.get_by_label("Virtual tokens", exact=True)
    described = page.locator(f"#{tokens.get_attribute('aria-describedby')}")
    settings = studio.live.ask("POST", f"/v1/files/{file}/preview", {}).json["settings"]
    (choice,) = [each for each in settings if each["setting"] == "method.n_tokens"]
    page.get_by_text(f"auto: {choice['value']} — {choice['why']}").wait_for()
    assert described.inner_text() == f"auto: {choice['value']} — {choice['why']}"
    tokens.fill("4")
    page.wait_for_function(
        "id => document.getElementById(id).textContent === 'as given'", arg=described.get_attribute("id")
    )
    page.get_by_label("Name", exact=True).fill("../up")
    page.get_by_role("button", name="Start training").click()
    problem = page.get_by_role("alert").filter(has_text="suffix")
    problem.wait_for()
    assert page.get_by_label("Name", exact=True).get_attribute("aria-invalid") == "true"
    page.reload()
    page.get_by_label("Name", exact=True).wait_for()
    assert page.get_by_label("Virtual tokens", exact=True).input_value() == "4"
    tab.complaints.clear()  # of the browser, about the 400


def test_only_pairs_are_offered_to_be_compared(tab: StudioPage, studio: Tuned) -> None:
    """Both answers are shown then, each marked in its way, and a reload keeps the choice."""
    page = tab.open("train", file=upload(studio))
    page.locator("mark.learned").first.wait_for()
    assert page.get_by_label("Learn from", exact=True).is_hidden()
    file = upload(studio, PAIRS)
    page = tab.open("train", file=file)
    choice = page.get_by_label("Learn from", exact=True)
    choice.wait_for()
    assert choice.input_value() == "" and page.locator("ol mark.rejected").count() == 0
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    assert page.get_by_label("Beta", exact=True).is_hidden()
    choice.select_option("preferences (DPO)")
    page.locator("ol mark.rejected").first.wait_for()
    asked = {"rows": 3, "method": {"type": "dpo"}}
    found = studio.live.ask("POST", f"/v1/files/{file}/preview", asked).json
    for i, row in enumerate(found["rows"]):
        for kind, answer in (("learned", row), ("rejected", row["rejected"])):
            assert answer["pieces"][1]["text"] in page.locator(f"ol mark.{kind}").nth(i).text_content()  # type: ignore[operator]
    (beta,) = [each for each in found["settings"] if each["setting"] == "objective.beta"]
    page.get_by_text(f"auto: {beta['value']} — {beta['why']}").wait_for()
    assert page.locator("img").count() == 0 and violations(tab) == [] and overflow(tab) == 0
    page.reload()
    page.locator("ol mark.rejected").first.wait_for()
    assert page.get_by_label("Learn from", exact=True).input_value() == "dpo"


def test_a_job_on_pairs_from_the_page(
    tab: StudioPage, studio: Tuned, worker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body is the one that the curl line shows, the command line has the same settings, and the job compares."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    (tmp_path / "rows.jsonl").write_bytes(payload(PAIRS)["buffer"])
    page = tab.open("train", file=upload(studio, PAIRS))
    page.get_by_label("Learn from", exact=True).select_option("preferences (DPO)")
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    for label, value in (("Name", "pairs"), ("Virtual tokens", "4"), ("Epochs", "1"), ("Beta", "0.3")):
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_text("as given", exact=True).nth(2).wait_for()
    (command,) = [line for line in lines(page) if line.startswith("softprompt train")]
    base = studio.store.base()
    assert base is not None
    words = command.replace(f"--model {BASE}", f"--model {base.model}").split()[1:]
    config = done(*words, "--print-config").stdout
    assert re.search(r"name: dpo\b", config) and re.search(r"beta: 0\.3\b", config) and "epochs: 1" in config
    (curl,) = [line for line in lines(page) if JOBS in line]
    with page.expect_request(lambda request: request.url.endswith(JOBS) and request.method == "POST") as sent:
        page.get_by_role("button", name="Start training").click()
    assert json.loads(curl[curl.index("{") : -1]) == sent.value.post_data_json
    state(page, "succeeded", seconds=60)
    (job,) = [each for each in studio.store.jobs(None, limit=50).items if each.suffix == "pairs"]
    assert (job.method, job.hyperparameters.beta, job.hyperparameters.n_epochs) == ("dpo", 0.3, 1)
    page.get_by_text("Settings", exact=True).click()
    assert "preferences (DPO)" in page.locator("dl.facts").last.inner_text()


def test_a_file_that_is_too_large_is_not_sent(tab: StudioPage, studio: Tuned) -> None:
    page = tab.open("train")
    assert "at most 64 MB and 200,000 rows" in page.get_by_text("JSONL, one row a line").inner_text()
    page.evaluate(
        """() => {
          const input = document.querySelector('input[type=file]');
          const files = new DataTransfer();
          files.items.add(new File([new Uint8Array(70 * 2 ** 20)], 'big.jsonl'));
          input.files = files.files;
          input.dispatchEvent(new Event('change'));
        }"""
    )
    page.get_by_role("alert").filter(has_text="Nothing was sent").wait_for()
    assert not [url for url in tab.requests if url.endswith("/v1/files")]


def test_a_dropped_file(tab: StudioPage) -> None:
    page = tab.open("train")
    text = payload(ROWS)["buffer"].decode()
    page.get_by_label("Rows to learn from", exact=True).wait_for(state="attached")
    page.evaluate(
        """text => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([text], 'dropped.jsonl'));
          const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
          document.querySelector('.drop').dispatchEvent(new DragEvent('drop', options));
        }""",
        text,
    )
    page.get_by_role("heading", name="dropped.jsonl").wait_for()


def test_two_tabs_and_a_reload_in_the_middle(long_job: str, new_tab: Callable[..., StudioPage], studio: Tuned) -> None:
    """Both tabs show the same; pause, resume and cancel ask first; a reload begins with all that was told."""
    one, two = new_tab(), new_tab()
    pages = [each.open("train", job=long_job) for each in (one, two)]
    for page in pages:
        state(page, "running")
        page.get_by_text(re.compile(r"^Step \d+")).first.wait_for()
    one.page.reload()
    state(one.page, "running")
    shown = numbers(one.page)
    one.page.wait_for_function(f"() => document.querySelectorAll('.curve tbody tr').length > {len(shown)}")
    one.page.get_by_role("button", name="Pause").click()
    one.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert not studio.store.job(long_job, None).paused
    one.page.get_by_role("button", name="Pause").click()
    one.page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    for page in pages:
        state(page, "paused")
    two.page.get_by_role("button", name="Resume").click()
    for page in pages:
        state(page, "running")
    two.page.get_by_role("button", name="Cancel the job").click()
    two.page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    for page in pages:
        state(page, "cancelled")
        page.get_by_role("link", name="Start again with these settings").wait_for()
    assert history(one.page) == history(two.page) == told(studio, long_job)


def numbers(page: Page) -> list[str]:
    """The rows of the curve's table."""
    page.locator(".curve tbody tr").first.wait_for(state="attached")
    return page.locator(".curve tbody tr").all_text_contents()


def history(page: Page) -> list[str]:
    """Oldest first."""
    lines: list[str] = page.locator(".events li").evaluate_all("lines => lines.map(line => line.lastChild.textContent)")
    return lines[::-1]


def told(server: Tuned, job: str) -> list[str]:
    return [event.message for event in server.store.events(job, None, newest_first=False, limit=10_000).items][-200:]


def test_a_server_that_goes_away_in_the_middle(long_job: str, tab: StudioPage, studio: Tuned) -> None:
    """The page goes on by itself, and tells every event once."""
    page = tab.open("train", job=long_job)
    state(page, "running")
    page.context.set_offline(True)
    page.locator("#banner").wait_for()
    before = len(history(page))
    time.sleep(1.5)
    page.context.set_offline(False)
    page.locator("#banner").wait_for(state="hidden")
    page.wait_for_function(f"() => document.querySelectorAll('.events li').length > {before + 1}")
    studio.store.cancel_job(long_job, None)
    state(page, "cancelled")
    assert history(page) == told(studio, long_job)
    tab.complaints.clear()  # of the browser, about the requests that failed


def test_a_failed_job_says_why_and_what_to_do(tab: StudioPage, studio: Tuned, worker: None) -> None:
    long = {"prompt": f"{HTML} " * 60, "completion": "red"}
    job = create(studio, suffix="broken", training_file=upload(studio, [*ROWS, long]))
    page = tab.open("train", job=job)
    state(page, "failed")
    alert = page.get_by_role("alert").filter(has_text="It failed")
    alert.wait_for()
    assert "training_file:25" in alert.inner_text() and "rows are too long" in alert.inner_text()
    assert "Mend the file" in alert.inner_text()
    page.get_by_role("link", name="Start again with these settings").click()
    page.get_by_role("button", name="Start training").wait_for()
    assert page.get_by_label("Name", exact=True).input_value() == "broken"
    page.get_by_role("alert").filter(has_text="too long").wait_for()  # the preview says so before a job is made
    tab.complaints.clear()  # of the browser, about the 400


def test_jobs_are_listed_with_their_states(tab: StudioPage, studio: Tuned) -> None:
    job = create(studio, suffix="waiting", metadata={HTML: HTML})
    page = tab.open("train")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="waiting"))
    row.first.wait_for()
    assert row.first.locator(".badge").inner_text() in {"queued", "running", "succeeded"}
    studio.store.cancel_job(job, None) if not studio.store.job(job, None).is_finished else None
    row.first.get_by_role("link").click()
    page.get_by_role("heading", name="waiting").wait_for()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_in_a_file_and_a_job(
    dark: bool, new_tab: Callable[..., StudioPage], studio: Tuned, worker: None
) -> None:
    tab = new_tab(width=NARROW if dark else 1280, dark=dark)
    job = create(studio, soft_prompt={"n_tokens": 4}, hyperparameters={"n_epochs": 2})
    page = tab.open("train", file=upload(studio))
    page.locator("mark.learned").first.wait_for()
    assert violations(tab) == [] and overflow(tab) == 0
    page = tab.open("train", job=job)
    state(page, "succeeded")
    page.get_by_role("region", name="Comparison").wait_for()
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    page.wait_for_load_state("networkidle")
    assert violations(tab) == [] and overflow(tab) == 0


def lines(place: Page | Locator) -> list[str]:
    return [text for text in place.locator(".commands code").all_text_contents() if text]


def test_the_commands_work(tab: StudioPage, studio: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """curl lines get the same answers; lines of the command line are ones it takes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTPROMPT_API_KEY", USER)
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    (tmp_path / "rows.jsonl").write_bytes(payload(ROWS)["buffer"])
    page = tab.open("train", file=upload(studio))
    page.get_by_label("Virtual tokens", exact=True).fill("4")
    page.get_by_label("Name", exact=True).fill("it's")
    page.get_by_label("Name", exact=True).fill("by curl")
    page.get_by_label("Epochs", exact=True).fill("2")
    page.get_by_text("by-curl", exact=False).first.wait_for(state="attached")
    found = lines(page)
    (sent,) = [json.loads(run(line)) for line in found if "/v1/files" in line]
    assert sent["filename"] == "rows.jsonl"
    (made,) = [json.loads(run(line)) for line in found if JOBS in line]
    job = studio.store.job(made["id"], None)
    assert (job.suffix, job.soft_prompt.n_tokens, job.hyperparameters.n_epochs) == ("by-curl", 4, 2)
    base = studio.store.base()
    assert base is not None
    for line in (
        line.replace(f"--model {BASE}", f"--model {base.model}") for line in found if "softprompt" in line[:10]
    ):
        words = line.split()[1:]
        done(*words, *(["--print-config"] if words[0] == "train" else []))
    studio.store.cancel_job(job.id, None) if not studio.store.job(job.id, None).is_finished else None


def test_the_commands_of_a_job_work(
    tab: StudioPage, studio: Tuned, long_job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTPROMPT_API_KEY", USER)
    page = tab.open("train", job=long_job)
    state(page, "running")
    (pause,) = [line for line in lines(page) if line.startswith("curl") and "/pause" in line]
    assert json.loads(run(pause))["paused"]
    page.get_by_role("button", name="Resume").wait_for()
    for verb, name in (("resume", "Pause"), ("cancel", "")):
        (line,) = [line for line in lines(page) if line.startswith(f"softprompt jobs {verb}")]
        done(*line.split()[1:])
        page.get_by_role("button", name=name, exact=True).wait_for() if name else state(page, "cancelled")
    curl, cli = lines(page)[:2]
    assert json.loads(run(curl))["id"] == long_job and long_job in done(*cli.split()[1:]).stdout


def run(line: str) -> str:
    environment = {**os.environ, "SOFTPROMPT_API_KEY": USER}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, env=environment).stdout
