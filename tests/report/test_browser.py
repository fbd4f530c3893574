"""The report in a real browser: widths, light and dark, keyboard, policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from softprompt.report.page import page
from tests.report.planted import HOSTILE, inspected
from tests.support.chromium import MISSING, Browser, chromium, find_chromium

WIDTHS = (375, 768, 1280)
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# The smallest contrast (WCAG 2.2) of any text with the page's ground, or with that of its own box.
CONTRAST = """(() => {
  const light = (color) => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255)
      .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const nodes = [...document.querySelectorAll("p, th, td, a, h1, h2, figcaption, code, summary, button, svg text")];
  return Math.min(...nodes.map((node) => {
    const style = getComputedStyle(node);
    const pair = [light(node.closest("svg") ? style.fill : style.color), light(ground(node))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  }));
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip(MISSING)
    with chromium(program, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    reports = {"one": [inspected()], "three": [inspected(name, text=HOSTILE * 3) for name in ("a", "b", HOSTILE)]}
    for name, prompts in reports.items():
        (folder / f"{name}.html").write_text(page(prompts, f"{name}.json"), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in reports}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("report", ["one", "three"])
def test_a_page_fits_reads_and_asks_for_nothing(
    report: str, dark: bool, browser: Browser, files: dict[str, Path]
) -> None:
    grounds = set[str]()
    for width in WIDTHS:
        browser.open(files[report], width, dark=dark)
        assert browser.evaluate(OVERFLOW) <= 0, f"scrolls sideways at {width}"
        assert browser.evaluate(CONTRAST) >= 4.5
        assert browser.complaints == []
        assert browser.requests == [files[report].as_uri()]
        grounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == {"rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)"}


def test_landmarks_headings_and_text_are_where_readers_look(browser: Browser, files: dict[str, Path]) -> None:
    browser.open(files["one"], 1280)
    counts = {name: browser.evaluate(f"document.querySelectorAll('{name}').length") for name in ("main", "nav", "h1")}
    assert counts == {"main": 1, "nav": 1, "h1": 1}
    linked = browser.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
    sections = browser.evaluate("[...document.querySelectorAll('main section')].map(s => s.id)")
    assert linked == sections and "worth" in sections
    assert browser.evaluate("[...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label'))")
    assert browser.evaluate("document.querySelectorAll('script').length") == 1
    assert HOSTILE[:20] in browser.evaluate("document.querySelector('#leak').textContent")


def test_the_keyboard_reaches_the_contents(browser: Browser, files: dict[str, Path]) -> None:
    browser.open(files["one"], 375)
    seen = []
    for _ in range(4):
        browser.press_tab()
        seen.append(browser.evaluate("[document.activeElement.className, document.activeElement.getAttribute('href')]"))
    assert seen[0] == ["skip", "#main"]
    assert [href for _, href in seen[1:]] == ["#behavior", "#nearest", "#drift"]


def test_a_table_is_copied_as_tab_separated_values(browser: Browser, files: dict[str, Path]) -> None:
    browser.open(files["one"], 1280)
    browser.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    browser.evaluate("document.querySelector('#worth .table .copy').click()")
    first, second, *_ = browser.evaluate("window.copied").splitlines()
    assert first.split("\t") == ["virtual token", "Shapley", "±", "lost without it"]
    assert second.split("\t") == ["0", "0.2", "0.05", "0.2"]


def test_violations_and_requests_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    """These tests can fail: the same page with a script, a picture from elsewhere and a wide box."""
    text = page([inspected()]).replace(
        "<footer>", "<script>1</script><img src='http://127.0.0.1:9/x'><svg width='900'></svg><footer>"
    )
    text = text.replace("svg { display: block; width: 100%", "svg { display: block;        ")  # keeps no hash
    (tmp_path / "bad.html").write_text(text, encoding="utf-8")
    browser.open(tmp_path / "bad.html", 375)
    assert any("script-src" in complaint for complaint in browser.complaints)
    assert any("img-src" in complaint or "default-src" in complaint for complaint in browser.complaints)
    assert browser.evaluate(OVERFLOW) > 0
