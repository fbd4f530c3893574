"""How soon each view of the studio is painted, in headless Chromium against a server on this machine.

    scripts/studio-first-paint                                  # starts a server with a random model of two layers
    scripts/studio-first-paint --url http://127.0.0.1:8000      # one that runs, without keys

Each visit has a new profile of the browser, so nothing is cached. Times are medians in milliseconds since the
navigation began: the first contentful paint (the browser's own entry), and when the view's heading is there.
Playwright of the group dev drives the Chromium of scripts/setup-browser.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VIEWS = ("prompts", "compare", "evaluate", "train", "distill", "inspect")
LIMIT_MS = 1000
_PAINTS = "() => performance.getEntriesByName('first-contentful-paint').length > 0 && window.headingAt !== undefined"
_TIMES = "() => [performance.getEntriesByName('first-contentful-paint')[0].startTime, window.headingAt]"
_WATCH = """
new MutationObserver((_, observer) => {
  if (!document.querySelector('main h1')) return;
  window.headingAt = performance.now();
  observer.disconnect();
}).observe(document, {childList: true, subtree: true});
"""


@contextlib.contextmanager
def served(url: str) -> Iterator[str]:
    """The address of a studio: the given one, or one that is started for as long."""
    from scripts.studio_screenshots import studio
    from tests.support.saved import save_tiny

    if url:
        yield url.rstrip("/")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with studio(str(save_tiny(folder / "tiny", "llama")), folder) as server:
            yield server.url


def visit(browser: Browser, address: str) -> tuple[float, float]:
    """First contentful paint and heading of one visit, in milliseconds."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.add_init_script(_WATCH)
    page.goto(address)
    until = 0
    while not page.evaluate(_PAINTS) and until < 600:  # wait_for_function evaluates text, which the policy refuses
        page.wait_for_timeout(50)
        until += 1
    paint, heading = page.evaluate(_TIMES)
    context.close()
    return paint, heading


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="", help="a server that runs")
    parser.add_argument("--visits", type=int, default=5, help="of each view")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    from tests.support.chromium import MISSING, find_chromium

    program = find_chromium()
    if program is None:
        raise SystemExit(MISSING)
    slow = []
    with served(options.url) as url, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program)
        visit(browser, f"{url}/studio/#/prompts")  # the browser's own start is not the page's
        for view in VIEWS:
            visits = [visit(browser, f"{url}/studio/#/{view}") for _ in range(options.visits)]
            paint, heading = (round(median(times)) for times in zip(*visits, strict=True))
            worst = round(max(times[0] for times in visits))
            print(json.dumps({"view": view, "first_paint_ms": paint, "slowest_ms": worst, "heading_ms": heading}))
            slow += [view] if paint >= LIMIT_MS else []
        browser.close()
    if slow:
        raise SystemExit(f"first paint after {LIMIT_MS} ms or more: {', '.join(slow)}")


if __name__ == "__main__":
    main()
