"""One server, one worker and one browser for the folder; each test has a tab of its own, without anything stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import structlog

from softprompt.models.loading import load_model
from tests.support import job_workers
from tests.support.chromium import MISSING, find_chromium
from tests.support.fine_tuning import Tuned, succeed_with, tuned
from tests.support.live_server import TEMPLATES, USER, save_prompt
from tests.support.saved import save_tiny
from tests.support.studio import StudioPage

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTH, HEIGHT = 1280, 900
VIEWS = ("prompts", "compare", "evaluate", "train", "distill", "inspect")


@pytest.fixture(scope="package", autouse=True)
def silent() -> Iterator[None]:
    """Log lines go nowhere."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="package")
def program() -> str:
    """The browser's program; without one the tests are skipped."""
    found = find_chromium()
    if found is None:
        pytest.skip(MISSING)
    return found


@pytest.fixture(scope="package")
def browser(program: str) -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the group dev has it")
    with api.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=program)
        yield launched
        launched.close()


@pytest.fixture(scope="package")
def studio(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    """A server with jobs on a tiny model, with the soft prompts of `TEMPLATES`; `worker` is beside it."""
    folder = tmp_path_factory.mktemp("studio")
    model = save_tiny(folder / "base", "llama", bos=True)
    lm = load_model(str(model), dtype="float32", device="cpu")
    for seed, (name, (form, template)) in enumerate(TEMPLATES.items(), 1):
        save_prompt(folder / "public" / name, form, template, seed, lm)
    with tuned(folder, folder / "public", model=str(model), studio=True) as server:
        yield server


@pytest.fixture(scope="package")
def owned(studio: Tuned) -> str:
    """A soft prompt that a job of the user's key has made, "seen" for short."""
    return succeed_with(studio, "seen")


@pytest.fixture(scope="package")
def worker(studio: Tuned, owned: str) -> Iterator[None]:
    """A process that runs the server's jobs and inspections."""
    process = job_workers.start(job_workers.context(), studio.store)
    yield
    job_workers.stop(process)


@pytest.fixture
def new_tab(studio: Tuned, browser: Browser) -> Iterator[Callable[..., StudioPage]]:
    """Makes tabs: `new_tab(key=USER, width=1280, dark=False)`; after the test no tab has complained."""
    with ExitStack() as stack:
        tabs = list[StudioPage]()

        def made(key: str = USER, width: int = WIDTH, height: int = HEIGHT, dark: bool = False) -> StudioPage:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if dark else "light",
                reduced_motion="reduce",
                accept_downloads=True,
            )
            stack.callback(context.close)
            tab = StudioPage(context.new_page(), studio)
            tab.page.set_default_timeout(60_000)
            tab.use_key(key)
            tabs.append(tab)
            return tab

        yield made
        assert [tab.complaints for tab in tabs if tab.complaints] == []


@pytest.fixture
def tab(new_tab: Callable[..., StudioPage]) -> StudioPage:
    """A tab with a user's key."""
    return new_tab()
