"""`softprompt studio`: what it starts, and what it shows where."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from softprompt.cli import studio as verb
from softprompt.cli.serve import EngineChoice
from softprompt.server.config import ServerConfig
from tests.support.shell import done, softprompt


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ServerConfig, EngineChoice]]:
    """What the verb starts; the address is a fixed one."""
    calls = list[tuple[ServerConfig, EngineChoice]]()

    def run_serve(settings: ServerConfig, engine: EngineChoice, *, on_start: Callable[[str], None]) -> None:
        calls.append((settings, engine))
        on_start("http://127.0.0.1:8000")

    monkeypatch.setattr(verb, "run_serve", run_serve)
    return calls


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that the browser is given."""
    pages = list[str]()
    monkeypatch.setattr(verb.webbrowser, "open", pages.append)
    return pages


def test_it_is_a_server_with_jobs_and_the_page(
    started: list[tuple[ServerConfig, EngineChoice]], opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    out = done("studio", "--port", 8001, "--workers", 2, "--store", "here").stdout
    for thread in threading.enumerate():
        if thread.name == "browser":
            thread.join(5)
    ((settings, engine),) = started
    assert settings.jobs and settings.studio and settings.host == "127.0.0.1"
    assert (settings.port, settings.workers, settings.store) == (8001, 2, "here")
    assert engine.model == "smollm2-135m"
    assert opened == ["http://127.0.0.1:8000/studio/"] and opened[0] in out


def test_a_named_model_and_no_browser(started: list[tuple[ServerConfig, EngineChoice]], opened: list[str]) -> None:
    done("studio", "--model", "org/base", "--no-browser")
    assert started[0][1].model == "org/base" and not opened


def test_a_machine_without_a_screen(
    started: list[tuple[ServerConfig, EngineChoice]], opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "has_window", lambda: False)
    out = done("studio").stdout
    assert not opened and "ssh -L 8000:127.0.0.1:8000" in out


def test_it_listens_to_this_machine_only() -> None:
    """There is no option for another address: the server has no keys unless they are given."""
    assert "--host" not in softprompt("studio", "--help").stdout
    assert softprompt("studio", "--host", "0.0.0.0").exit_code == 2
