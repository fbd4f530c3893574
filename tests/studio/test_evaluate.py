"""Evaluate: the matrix against the API, filters and CSV against an oracle, reloads and a server that goes away."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from softprompt.evaluation.metrics import exact_match, proportion
from tests.studio.test_accessible import violations
from tests.support.fine_tuning import Tuned
from tests.support.live_server import BASE, USER
from tests.support.shell import softprompt
from tests.support.studio import StudioPage

if TYPE_CHECKING:
    from playwright.sync_api import Page

LABELS = ("even", "odd")
ODD_TEXTS = ["=1+1", "-5", "@x", "+y", '"quoted", and\nlines', "<img src=x onerror=alert(1)>", "\tTab", "ünï"]
ROWS = [{"text": f"row {i}", "label": LABELS[i % 2]} for i in range(4)]
ROWS += [{"text": text, "label": LABELS[i % 2]} for i, text in enumerate(ODD_TEXTS)]
COLUMNS = {"columns": "base,text,review,question", "text": "Even or odd?", "place": "system", "max_tokens": "6"}


@pytest.fixture(autouse=True)
def plain_engine(studio: Tuned) -> Iterator[None]:
    """The engine is as it was for the next test."""
    studio.live.engine.seen.clear()
    yield
    studio.live.engine.pace, studio.live.engine.says = 0.0, ""


def uploaded(studio: Tuned, rows: list[Any], name: str = "rows.jsonl") -> str:
    """The id of a file with these rows."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with studio.client() as client:
        return client.files.create(file=(name, content), purpose="fine-tune").id


@pytest.fixture(scope="module")
def file(studio: Tuned) -> str:
    return uploaded(studio, ROWS)


def start(page: Page, name: str = "Start") -> None:
    page.get_by_role("button", name=name, exact=True).click()


def ended(page: Page, answers: int) -> None:
    page.get_by_text(f"{answers:,} of {answers:,} answers", exact=True).wait_for(timeout=180_000)


def exported(page: Page) -> list[dict[str, str]]:
    """The CSV file, parsed."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as CSV").click()
    raw = Path(download.value.path()).read_bytes()
    assert raw.count(b"\r\n") and raw.endswith(b"\r\n")
    return list(csv.DictReader(io.StringIO(raw.decode("utf-8"), newline="")))


def safe(text: str) -> str:
    """A cell as a spreadsheet cannot run it."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") and text else text


def api_answer(studio: Tuned, model: str, row: dict[str, str], instruction: str = "") -> str:
    turns = [{"role": "system", "content": instruction}] if instruction else []
    choices = [choice for label in LABELS for choice in (label, f" {label}")]
    body = {
        "model": model,
        "messages": [*turns, {"role": "user", "content": row["text"]}],
        "temperature": 0,
        "max_tokens": 6,
        "seed": 0,
        "structured_outputs": {"choice": choices},
    }
    reply = studio.live.ask("POST", "/v1/chat/completions", body)
    assert reply.status == 200, reply.raw
    return reply.json["choices"][0]["message"]["content"]


def shown_lines(page: Page) -> list[int]:
    return [int(text) for text in page.locator(".matrix tbody th").all_inner_texts()]


def summary(page: Page, title: str) -> list[str]:
    return page.get_by_role("region", name="Scores").get_by_role("row", name=title).locator("td").all_inner_texts()


def test_the_matrix_is_what_the_api_answers(tab: StudioPage, studio: Tuned, file: str) -> None:
    """Every cell, the scores as the library has them, the filters, and the CSV file."""
    page = tab.open("evaluate", file=file, **COLUMNS)
    start(page)
    ended(page, 4 * len(ROWS))
    titles = {
        "Base model": (BASE, ""),
        "Text prompt": (BASE, "Even or odd?"),
        "review": ("review", ""),
        "question": ("question", ""),
    }
    cells = {t: [api_answer(studio, m, row, i) for row in ROWS] for t, (m, i) in titles.items()}
    right = {t: [a.strip() == row["label"] for a, row in zip(found, ROWS, strict=True)] for t, found in cells.items()}
    for title, hits in right.items():
        score = proportion(hits)
        interval = f"{score.low * 100:.1f} % to {score.high * 100:.1f} %"
        assert summary(page, title) == [
            f"{len(ROWS)} of {len(ROWS)}",
            "0",
            str(sum(hits)),
            f"{score.value * 100:.1f} %",
            interval,
        ]
    rows = exported(page)
    assert len(rows) == len(ROWS)
    for i, (found, row) in enumerate(zip(rows, ROWS, strict=True)):
        assert (found["line"], found["input"], found["reference"]) == (str(i + 1), safe(row["text"]), row["label"])
        for title in titles:
            assert found[title] == safe(cells[title][i]) and found[f"{title}: right"] == str(int(right[title][i]))
            assert found[f"{title}: error"] == ""
    soft = ("review", "question")
    oracle: dict[str, Callable[[int], bool]] = {
        "Regressed against text prompt": lambda i: right["Text prompt"][i] and not all(right[t][i] for t in soft),
        "Fixed against text prompt": lambda i: not right["Text prompt"][i] and any(right[t][i] for t in soft),
        "Answers differ": lambda i: len({cells[t][i].strip() for t in titles}) > 1,
        "All wrong": lambda i: not any(right[t][i] for t in titles),
        "Not answered": lambda i: False,
        "All rows": lambda i: True,
    }
    expected = {label: [i + 1 for i in range(len(ROWS)) if chosen(i)] for label, chosen in oracle.items()}
    assert sum(map(bool, expected.values())) > 3  # most of them say something
    for label, lines in expected.items():
        page.get_by_label("Show", exact=True).select_option(label=label)
        assert shown_lines(page) == lines, label
    page.get_by_label("Search").fill("ROW 1")
    assert shown_lines(page) == [i + 1 for i, row in enumerate(ROWS) if "row 1" in row["text"].lower()]
    assert [found["line"] for found in exported(page)] == list(map(str, shown_lines(page)))


def test_upload_and_faults_by_line(tab: StudioPage, tmp_path: Path) -> None:
    page = tab.open("evaluate", **COLUMNS)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 3}\n')
    page.get_by_label("Or upload one").set_input_files(bad)
    assert "line 2" in page.get_by_role("alert").filter(has_text="row").inner_text()
    good = tmp_path / "<b>good.jsonl"
    good.write_text('{"prompt": "a", "completion": "b"}\n')
    page.get_by_label("Or upload one").set_input_files(good)
    page.wait_for_function("() => document.querySelector('select').value.startsWith('file-')")
    assert page.locator("main b").count() == 0
    assert "file=file-" in page.url
    start(page)
    ended(page, 4)
    tab.complaints.clear()  # of the browser, about the 400


def test_a_reload_in_the_middle_goes_on(tab: StudioPage, studio: Tuned, file: str) -> None:
    """What was answered is not asked for again, and the end is the same."""
    page = tab.open("evaluate", file=file, **COLUMNS)
    studio.live.engine.pace = 0.02
    start(page)
    page.wait_for_function("() => document.querySelector('progress[aria-label=Answers]').value > 0.3")
    page.reload()
    page.get_by_role("button", name="Stop", exact=True).wait_for()
    page.get_by_label("Show", exact=True).wait_for()
    assert page.get_by_role("button", name="Stop", exact=True).is_enabled()
    studio.live.engine.pace = 0.0
    ended(page, 4 * len(ROWS))
    assert len(studio.live.engine.seen) <= 4 * len(ROWS) + 4  # those that were on their way
    assert all(row["review: right"] for row in exported(page))
    page.get_by_role("link", name="Compare").click()
    page.get_by_role("link", name="Evaluate").click()
    ended(page, 4 * len(ROWS))


def test_stop_and_continue(tab: StudioPage, studio: Tuned, file: str) -> None:
    page = tab.open("evaluate", file=file, **COLUMNS)
    studio.live.engine.pace = 0.02
    start(page)
    page.wait_for_function("() => document.querySelector('progress[aria-label=Answers]').value > 0.1")
    start(page, "Stop")
    page.get_by_role("button", name="Continue").wait_for()
    page.get_by_label("Show", exact=True).select_option(label="Not answered")
    assert 0 < len(shown_lines(page)) < len(ROWS)
    page.reload()
    page.get_by_role("button", name="Continue").wait_for()  # stopped stays stopped
    studio.live.engine.pace = 0.0
    start(page, "Continue")
    ended(page, 4 * len(ROWS))
    assert len(studio.live.engine.seen) <= 4 * len(ROWS) + 4


def test_the_server_goes_away_and_comes_back(tab: StudioPage, studio: Tuned, file: str) -> None:
    """The run waits; no cell has an error because of it."""
    page = tab.open("evaluate", file=file, **COLUMNS)
    studio.live.engine.pace = 0.02
    start(page)
    page.wait_for_function("() => document.querySelector('progress[aria-label=Answers]').value > 0.1")
    page.context.set_offline(True)
    page.get_by_text("the run waits for it").wait_for()
    page.context.set_offline(False)
    studio.live.engine.pace = 0.0
    ended(page, 4 * len(ROWS))
    assert {summary(page, title)[1] for title in ("Base model", "review")} == {"0"}
    tab.complaints.clear()  # of the browser, about the requests that failed


def test_errors_are_cells_in_the_apis_words(tab: StudioPage, studio: Tuned, file: str) -> None:
    """A column that cannot answer does not end the run; "pair" gets its two fields where rows have them."""
    page = tab.open("evaluate", file=file, columns="base,nobody", limit="3", answers="free", max_tokens="2")
    start(page)
    ended(page, 6)
    error = studio.live.ask(
        "POST", "/v1/chat/completions", {"model": "nobody", "messages": [{"role": "user", "content": "x"}]}
    )
    assert {row["nobody: error"] for row in exported(page)} == {error.json["error"]["message"]}
    assert summary(page, "nobody")[:2] == ["0 of 3", "3"]
    two = uploaded(studio, [{"text": "a", "text2": "b", "label": "x"}, {"text": "c", "text2": "d", "label": "y"}])
    page = tab.open("evaluate", file=two, columns="pair", answers="free", max_tokens="2")
    start(page)
    ended(page, 2)
    assert {row["pair: error"] for row in exported(page)} == {""}
    tab.complaints.clear()  # of the browser, about the statuses


def test_row_detail_and_injected_html(tab: StudioPage, studio: Tuned, file: str) -> None:
    """By keyboard; differences are marked, and nothing becomes an element of a user's making."""
    studio.live.engine.says = "<b>even</b> and =odd"
    page = tab.open("evaluate", file=file, columns="base,review", answers="free")
    start(page)
    ended(page, 2 * len(ROWS))
    line = 4 + ODD_TEXTS.index("<img src=x onerror=alert(1)>") + 1
    page.get_by_role("button", name=f"Line {line}, in full").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name=f"Line {line}")
    assert "<img src=x onerror=alert(1)>" in dialog.inner_text() and dialog.locator("ins").count() > 0
    assert page.locator("main img, main b, dialog img, dialog b").count() == 0
    dialog.get_by_label("Differences from").select_option(label="Base model")
    assert dialog.locator("ins, del").count() == 0  # both columns say the same
    dialog.get_by_role("button", name="Next").click()
    page.get_by_role("dialog", name=f"Line {line + 1}").wait_for()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0
    assert [row["review"] for row in exported(page)] == ["<b>even</b> and =odd"] * len(ROWS)


def test_a_narrow_screen_and_axe(new_tab: Callable[..., StudioPage], file: str) -> None:
    """With results, with every disclosure and with a row open."""
    tab = new_tab(width=375, dark=True)
    page = tab.open("evaluate", file=file, columns="base,review", limit="3")
    start(page)
    ended(page, 6)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert violations(tab) == []
    page.get_by_role("button", name="Line 1, in full").click()
    assert violations(tab) == []
    page.keyboard.press("Escape")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_five_thousand_rows_stay_quick(tab: StudioPage) -> None:
    """50 rows on the page; a filter over all 20,000 answers within half a second on a slow machine."""
    page = tab.open("evaluate")
    code = """import('/studio/views/evaluate_results.js').then(({Results}) => {
        const row = i => ({line: i + 1, scoring: 'generation', tools: false, choices: [], fields: {},
            messages: [{role: 'user', content: `question ${i}`}], references: [`answer ${i % 7}`]});
        const rows = Array.from({length: 5000}, (_, i) => row(i));
        const columns = ['base', 'text', 'soft', 'soft'].map(kind => ({kind}));
        const cells = columns.map((_, c) => rows.map((_, i) => ({answer: `answer ${(i * (c + 1)) % 7}`, error: ''})));
        const shown = {filter: 'all', search: '', onFilter() {}, announce() {}};
        const matrix = {rows, columns, titles: ['a', 'b', 'c', 'd'], cells, ...shown};
        const results = new Results(matrix);
        document.querySelector('main').append(results.element);
        return ['regressed', 'fixed', 'disagree', 'wrong', 'all'].map(filter => {
            matrix.filter = filter;
            matrix.search = 'question 4';
            const begun = performance.now();
            results.choose();
            results.element.getBoundingClientRect();
            return performance.now() - begun;
        });
    })"""
    times = page.evaluate(code)
    assert max(times) < 500, times
    assert page.locator(".matrix tbody tr").count() == 50
    page.get_by_role("button", name="Next page").click()
    assert page.locator(".matrix tbody tr").count() == 50 and shown_lines(page)[0] > 50


def test_scores_and_differences_are_exact(tab: StudioPage) -> None:
    """Against the library: Wilson's interval, exact match with every white space, and a diff that holds both texts."""
    page = tab.open("evaluate")
    score = "import('/studio/views/evaluate_score.js')"
    for n in (1, 2, 7, 40):
        for hits in range(n + 1):
            verdicts = [i < hits for i in range(n)]
            found = page.evaluate(f"{score}.then(m => m.proportion({json.dumps(verdicts)}))")
            wanted = proportion(verdicts)
            assert [found["share"], found["low"], found["high"]] == pytest.approx(
                [wanted.value, wanted.low, wanted.high], abs=1e-12
            )
    space = [
        chr(code)
        for code in (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, 0x2003, 0x2028, 0x3000, 0xFEFF, 0x200B)
    ]
    for char in space:
        answer, row = f"{char}a b{char}", {"references": ["a b"], "scoring": "generation"}
        found = page.evaluate(f"{score}.then(m => m.isRight({json.dumps(answer)}, {json.dumps(row)}))")
        assert found == bool(exact_match([answer], [["a b"]]).value), hex(ord(char))
    code = """import('/studio/views/evaluate_diff.js').then(({differences}) => [
        ["a b c", "a x c"], ["", "a"], ["a", ""], ["one two  three", "two three four"], ["same", "same"],
        ["x ".repeat(3000), "y ".repeat(3000)],
    ].every(([a, b]) => {
        const parts = differences(a, b);
        const join = kind => parts.filter(p => p.kind !== kind).map(p => p.text).join("");
        return join("new") === a && join("gone") === b;
    }))"""
    assert page.evaluate(code)


def test_commands(tab: StudioPage, studio: Tuned, file: str, tmp_path: Path) -> None:
    """The file, the first row's requests, and `softprompt eval`, which runs on that file."""
    page = tab.open("evaluate", file=file, **(COLUMNS | {"columns": "base,text,review"}), limit="4")
    start(page)
    ended(page, 12)
    page.get_by_text("As a command").click()
    curl, cli = page.locator(".command code").all_inner_texts()
    content, *requests = curl.splitlines()
    words = shlex.split(content)
    assert words[:3] == ["curl", "-o", "rows.jsonl"] and USER not in curl
    raw = studio.live.ask("GET", words[3].removeprefix(studio.live.url)).raw
    (tmp_path / "rows.jsonl").write_bytes(raw)
    first = exported(page)[0]
    for title, line in zip(("Base model", "Text prompt", "review"), requests, strict=True):
        words = shlex.split(line)
        reply = studio.live.ask(
            "POST", words[1].removeprefix(studio.live.url), json.loads(words[words.index("-d") + 1])
        )
        assert reply.json["choices"][0]["message"]["content"] == first[title]
    verb, *words = shlex.split(cli.replace("rows.jsonl", str(tmp_path / "rows.jsonl")))
    folder = studio.prompts.parents[1]
    options = ["--model", str(folder / "base"), "--dtype", "float32", "--json"]
    result = softprompt(*words, *options, SOFTPROMPT_HOME=str(folder / "public"))
    assert verb == "softprompt" and result.exception is None, result.output
    assert json.loads(result.stdout)["soft_prompt"]["rows"] == 4
