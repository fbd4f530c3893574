"""Compare: columns that stream side by side, each equal to what the API says, in a real browser."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from softprompt.models.geometry import Geometry
from tests.studio.test_accessible import violations
from tests.support.fine_tuning import Tuned
from tests.support.live_server import BASE, USER
from tests.support.shell import json_lines, softprompt
from tests.support.studio import StudioPage
from tests.support.tiny import tiny_lm

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

HTML = "<img src=x onerror=alert(1)><b>&lt;"
FOUR = {"columns": "base,text,talk,kind", "text": "Be brief.", "place": "system", "max_tokens": "9"}
# Notes what moves outside of answers, as names of elements.
SHIFTS = """
window.shifts = [];
const element = node => node instanceof Element ? node : node?.parentElement;
const moved = entry => entry.sources.map(source => element(source.node)).filter(one => !one?.closest(".turns"));
const note = list => list.getEntries().forEach(entry => window.shifts.push(...moved(entry).map(one => one?.outerHTML)));
new PerformanceObserver(note).observe({type: "layout-shift"});
"""
SAMPLING: dict[str, Any] = {"temperature": 0, "top_p": 1, "max_tokens": 9, "seed": 0}


@pytest.fixture(autouse=True)
def plain_engine(studio: Tuned) -> Iterator[None]:
    """The engine is as it was for the next test."""
    yield
    studio.live.engine.pace, studio.live.engine.says = 0.0, ""


def column(page: Page, title: str) -> Locator:
    return page.locator(".answer-column").filter(has=page.get_by_role("heading", name=title, exact=True))


def send(page: Page, text: str) -> None:
    page.get_by_label("Your turn").fill(text)
    page.get_by_role("button", name="Send").click()


def ended(page: Page, columns: int = 4) -> None:
    """All columns have ended."""
    page.wait_for_function(
        "number => document.querySelectorAll('.answer-column :is(.answer, .notice)').length >= number"
        " && !document.querySelector('.answer-column[aria-busy=true]')",
        arg=columns,
    )


def reply(studio: Tuned, model: str, *messages: tuple[str, str], **sampling: Any) -> Any:
    """What the API answers without a page."""
    turns = [{"role": role, "content": content} for role, content in messages]
    body = {"model": model, "messages": turns, "logprobs": True, **SAMPLING, **sampling}
    found = studio.live.ask("POST", "/v1/chat/completions", body)
    assert found.status == 200, found.raw
    return found.json


def measure(part: Locator, name: str) -> str:
    return part.locator(f"dt:text-is('{name}') + dd").inner_text()


def test_four_columns_are_what_the_api_answers(tab: StudioPage, studio: Tuned) -> None:
    """Text, log-probabilities, tokens, and bytes of keys and values, virtual tokens included."""
    page = tab.open("compare", **FOUR)
    send(page, "Where is my parcel?")
    ended(page)
    asked = ("user", "Where is my parcel?")
    wanted = {
        "Base model": reply(studio, BASE, asked),
        "Text prompt": reply(studio, BASE, ("system", "Be brief."), asked),
        "talk": reply(studio, "talk", asked),
        "kind": reply(studio, "kind", asked),
    }
    virtual = {row["id"]: row["n_tokens"] for row in studio.live.ask("GET", "/v1/models").json["data"]}
    geometry: Geometry = tiny_lm("llama", bos=True).geometry
    assert virtual["talk"] and virtual["kind"] and not virtual[BASE]
    for title, expected in wanted.items():
        part = column(page, title)
        choice, usage = expected["choices"][0], expected["usage"]
        assert part.locator(".answer").text_content() == choice["message"]["content"]
        cells = part.locator("table tbody tr").evaluate_all("rows => rows.map(row => row.cells[2].textContent)")
        scored = [f"{token['logprob']:.3f}" for token in choice["logprobs"]["content"]]
        assert cells == scored and len(scored) == usage["completion_tokens"]
        assert measure(part, "Tokens") == f"{usage['prompt_tokens']} in, {usage['completion_tokens']} out"
        held = (virtual.get(title, 0) + usage["total_tokens"]) * geometry.kv_bytes_per_token(4)
        assert measure(part, "Keys and values") == f"{held / 1024:.1f} KiB"
        assert measure(part, "First token").endswith(" ms") and measure(part, "Speed").endswith(" tokens/s")
    titles = page.locator(".answer .token").evaluate_all("spans => spans.map(span => [span.className, span.title])")
    assert titles and all(name.startswith("token step-") and "log-probability" in title for name, title in titles)


def test_a_second_turn_follows_each_columns_own_answer(tab: StudioPage, studio: Tuned) -> None:
    page = tab.open("compare", **FOUR)
    send(page, "One")
    ended(page)
    send(page, "Two")
    ended(page, 8)
    for title, model in (("Base model", BASE), ("kind", "kind")):
        first = reply(studio, model, ("user", "One"))["choices"][0]["message"]["content"]
        second = reply(studio, model, ("user", "One"), ("assistant", first), ("user", "Two"))
        answers = column(page, title).locator(".answer").all_text_contents()
        assert answers == [first, second["choices"][0]["message"]["content"]]


def test_an_error_stays_in_its_column_in_the_apis_words(tab: StudioPage, studio: Tuned) -> None:
    page = tab.open("compare", columns="base,pair,nobody,talk", max_tokens="4")
    send(page, "Hi")
    ended(page)
    for title in ("pair", "nobody"):
        asked = {"model": title, "messages": [{"role": "user", "content": "Hi"}]}
        error = studio.live.ask("POST", "/v1/chat/completions", asked).json["error"]
        assert column(page, title).locator(".notice").inner_text() == error["message"]
    for title in ("Base model", "talk"):
        assert column(page, title).locator(".notice").count() == 0
        assert measure(column(page, title), "Tokens").endswith("out")
    tab.complaints.clear()  # of the browser, about the statuses


def test_stop_and_retry(tab: StudioPage, studio: Tuned) -> None:
    """One column is stopped, the others go on; retried, it answers as if nothing had been."""
    studio.live.engine.pace = 0.05
    page = tab.open("compare", columns="base,talk", max_tokens="20")
    send(page, "Hi")
    column(page, "talk").locator(".token").first.wait_for()
    page.get_by_role("button", name="Stop talk").click()
    ended(page, 2)
    assert "Stopped." in column(page, "talk").inner_text()
    whole = reply(studio, BASE, ("user", "Hi"), max_tokens=20)["choices"][0]["message"]["content"]
    assert column(page, "Base model").locator(".answer").text_content() == whole
    studio.live.engine.pace = 0.0
    page.get_by_role("button", name="Retry talk").click()
    page.wait_for_function("() => !document.body.innerText.includes('Stopped.')")
    ended(page, 2)
    again = reply(studio, "talk", ("user", "Hi"), max_tokens=20)["choices"][0]["message"]["content"]
    assert column(page, "talk").locator(".answer").text_content() == again


def test_a_link_brings_the_same_columns_and_answers(new_tab: Callable[..., StudioPage]) -> None:
    """In another tab, with sampling; the key is not in it."""
    first = new_tab()
    page = first.open("compare", **(FOUR | {"temperature": "0.9", "seed": "7", "place": "front"}))
    send(page, "Hi & <hello> #1")
    ended(page)
    link, shown = page.url, page.locator(".answer").all_text_contents()
    assert USER not in link and len(set(shown)) > 1
    other = new_tab().page
    other.goto(link)
    assert other.get_by_label("Its text").input_value() == "Be brief."
    assert other.get_by_label("Where it stands").input_value() == "front"
    assert [other.get_by_label(f"Column {i}", exact=True).input_value() for i in range(1, 5)] == FOUR["columns"].split(
        ","
    )
    other.get_by_role("button", name="Run").click()
    ended(other)
    assert other.locator(".answer").all_text_contents() == shown
    assert other.url == link


def test_answers_outlive_a_reload(tab: StudioPage, studio: Tuned) -> None:
    """Those that were whole; what was in the middle is asked for again."""
    page = tab.open("compare", columns="base,talk", max_tokens="6")
    send(page, "One")
    ended(page, 2)
    whole = page.locator(".answer").all_text_contents()
    studio.live.engine.pace = 0.1
    send(page, "Two")
    page.reload()
    page.get_by_role("heading", name="talk", exact=True).wait_for()
    assert page.locator(".answer").all_text_contents() == whole
    studio.live.engine.pace = 0.0
    page.get_by_role("button", name="Run").click()
    ended(page, 4)
    assert [answer for i, answer in enumerate(page.locator(".answer").all_text_contents()) if i % 2 == 0] == whole


def test_injected_html_stays_text(tab: StudioPage, studio: Tuned) -> None:
    """In the model's output, a turn, a text prompt and a name."""
    studio.live.engine.says = HTML
    page = tab.open("compare", columns=f"base,text,{HTML}", text=HTML)
    send(page, HTML)
    ended(page, 3)
    assert page.locator("main img, main b, main script").count() == 0
    assert [part for part in page.locator(".answer").all_text_contents() if part] == [HTML, HTML]
    assert HTML in page.locator(".said").first.inner_text()
    assert page.get_by_role("heading", name=HTML, exact=True).count() == 1
    assert "alert" not in str(tab.complaints)
    tab.complaints.clear()  # about the model that does not exist


def test_by_keyboard_alone(tab: StudioPage) -> None:
    """Add a column, choose its model, write, send, retry."""
    page = tab.open("compare", columns="base", max_tokens="3")

    def reach(name: str) -> None:
        for _ in range(60):
            label = page.evaluate(
                "(document.activeElement.labels?.[0] ?? document.activeElement).textContent"
                " + '|' + (document.activeElement.getAttribute('aria-label') ?? '')"
            )
            if name in label.split("|"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{name} is not reached")

    reach("Add a column")
    page.keyboard.press("Enter")
    reach("Column 2")
    page.keyboard.type("talk")  # of a select, as its options are found
    reach("Your turn")
    page.keyboard.type("Hi")
    page.keyboard.press("Control+Enter")
    ended(page, 2)
    assert page.locator(".answer-column h2").all_inner_texts() == ["Base model", "talk"]
    reach("Retry talk")
    page.keyboard.press("Enter")
    ended(page, 2)


@pytest.mark.parametrize("width", [375, 3840])
def test_nothing_shifts_while_it_streams(width: int, new_tab: Callable[..., StudioPage], studio: Tuned) -> None:
    """Within an answer the last word may wrap to a new line as it grows. Also no scrolling sideways."""
    studio.live.engine.pace = 0.02
    page = new_tab(width=width).open("compare", **(FOUR | {"max_tokens": "40"}))
    page.evaluate(SHIFTS)
    page.get_by_label("Your turn").fill("Hi")
    page.keyboard.press("Control+Enter")
    page.locator(".answer .token").first.wait_for()
    page.wait_for_timeout(600)  # shifts within half a second of an input are not counted by the browser
    ended(page)
    assert page.evaluate("window.shifts") == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What the observer would see, in a page that is not scrolled:
    page.evaluate("scrollTo(0, 0)")
    page.evaluate(
        "document.querySelector('main').prepend(Object.assign(document.createElement('p'), {textContent: 'x'}))"
    )
    page.wait_for_function("() => window.shifts.length > 0")


def test_commands_do_the_same(tab: StudioPage, studio: Tuned) -> None:
    """The curl lines are requests with the answers of their columns; the verb's line runs, with the same answers."""
    page = tab.open("compare", **(FOUR | {"columns": "base,text,talk"}))
    send(page, 'It\'s $HOME & "more"')
    ended(page, 3)
    titles = page.locator(".answer-column h2").all_inner_texts()
    answers = dict(zip(titles, page.locator(".answer").all_text_contents(), strict=True))
    page.get_by_text("As a command").click()
    curl, cli = page.locator(".command code").all_inner_texts()
    for line, shown in zip(curl.splitlines(), answers.values(), strict=True):
        words = shlex.split(line)
        assert words[:2] == ["curl", "-N"] and USER not in line
        assert "Authorization: Bearer $SOFTPROMPT_API_KEY" in words
        body = json.loads(words[words.index("-d") + 1])
        events = studio.live.ask("POST", words[2].removeprefix(studio.live.url), body).events
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]) == shown
    public = studio.prompts.parents[1] / "public"
    verb, *words = shlex.split(cli)
    assert verb == "softprompt"
    model = ["--model", str(studio.prompts.parents[1] / "base"), "--dtype", "float32", "--json"]
    result = softprompt(*words[:2], *model, *words[2:], SOFTPROMPT_HOME=str(public))
    assert result.exception is None, result.output
    found = {row["prompt"]: row["answer"] for row in json_lines(result.stdout)}
    assert found == {"talk": answers["talk"], "(base)": answers["Base model"], "(text prompt)": answers["Text prompt"]}


def test_a_conversation_as_a_command(tab: StudioPage) -> None:
    """With several turns the verb reads rows of messages."""
    page = tab.open("compare", columns="talk", max_tokens="3")
    send(page, "One")
    ended(page, 1)
    page.get_by_label("Your turn").fill("It's two")
    page.get_by_text("As a command").click()
    cli = page.locator(".command code").all_inner_texts()[1]
    printed, _, verb = cli.partition(" | ")
    row = json.loads(shlex.split(printed)[2])
    assert row["prompt"] == "talk" and [turn["role"] for turn in row["messages"]] == ["user", "assistant", "user"]
    assert shlex.split(verb)[:5] == ["softprompt", "generate", "talk", "-", "--jsonl"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_beside_answers(dark: bool, new_tab: Callable[..., StudioPage]) -> None:
    """With answers, an error, and every disclosure open."""
    tab = new_tab(dark=dark)
    page = tab.open("compare", columns="base,text,talk,nobody", text="Be brief.", max_tokens="9")
    send(page, "Hi")
    ended(page)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert violations(tab) == []
    tab.complaints.clear()  # about the model that does not exist


def test_names_of_links(tab: StudioPage) -> None:
    """A soft prompt may be called base or text, and have any sign in its name."""
    page = tab.open("compare")
    code = """import('/studio/views/compare_columns.js').then(m => {
        const models = [{id: 'b,%2C', parent: null}, {id: 'base', parent: 'b,%2C', created: 1}];
        const name = m.linkName(models[1], models);
        const columns = [m.columnOf('base'), m.columnOf(name), m.columnOf('text', 'x', 'front')];
        const hash = new URLSearchParams();
        m.writeColumns(columns, hash);
        const read = m.readColumns(new URLSearchParams(hash.toString()));
        return [JSON.stringify(read) === JSON.stringify(columns), read.map(c => m.modelOf(c, models).id)];
    })"""
    assert page.evaluate(code) == [True, ["b,%2C", "base", "b,%2C"]]


def test_facts_of_models(studio: Tuned) -> None:
    """What the page shows of a column comes from /v1/models."""
    rows = {row["id"]: row for row in studio.live.ask("GET", "/v1/models").json["data"]}
    assert rows["pair"]["fields"] == ["text", "text2"] and rows["talk"]["fields"] == []
    assert (rows["talk"]["form"], rows[BASE]["form"]) == ("kv", "base")
    assert len({row["kv_bytes_per_token"] for row in rows.values()}) == 1
