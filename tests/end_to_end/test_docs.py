"""The docs site: every page is reachable, and every public name, verb, setting, path and error has its place.

mkdocs itself runs in `make docs`, strictly: links, anchors and docstrings are checked there.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

import softprompt
from softprompt import errors
from softprompt.cli.verbs import all_verbs
from softprompt.training.config import Config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return runpy.run_path(str(ROOT / "scripts" / "docs_pages.py"), run_name="test")["pages"]()


def files_of(entry: Any) -> list[str]:
    """The files of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry if isinstance(entry, list) else entry.values()
    return [file for part in parts for file in files_of(part)]


def test_every_page_is_in_the_navigation(pages: dict[str, str]) -> None:
    listed = files_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    left_out = {name for name in written if name.startswith(("log/2", "decisions/0"))}  # their README lists them
    assert sorted(listed) == sorted(written - left_out | pages.keys())


@pytest.mark.parametrize("folder", ["log", "decisions"])
def test_every_entry_is_in_its_table(folder: str) -> None:
    table = (DOCS / folder / "README.md").read_text(encoding="utf-8")
    entries = [path.name for path in (DOCS / folder).glob("[0-9]*.md")]
    assert [name for name in entries if f"({name})" not in table] == []


def test_everything_public_has_a_place(pages: dict[str, str]) -> None:
    python = pages["reference/python.md"]
    assert [name for name in softprompt.__all__ if f".{name}\n" not in python] == []
    commands = pages["reference/cli.md"]
    assert [verb for verb in all_verbs() if f"## softprompt {verb}" not in commands] == []
    settings = pages["reference/settings.md"]
    assert [name for name in Config.model_fields if f"| `{name}" not in settings] == []
    assert [
        name for name in ("train.lr", "study.queries", "method.n_tokens", "prompts_dir") if f"`{name}`" not in settings
    ] == []
    http = pages["reference/http.md"]
    paths = ("POST /v1/chat/completions", "POST /v1/fine_tuning/jobs", "POST /v1/files", "GET /livez")
    assert [path for path in paths if f"## {path}\n" not in http] == []
    assert "| `max_tokens` | integer at least 0 |" in http
    known = [name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)]
    assert [name for name in known if f"| `{name}` |" not in pages["reference/errors.md"]] == []
    assert "`softprompt_num_requests_running` | gauge" in pages["reference/metrics.md"]


def test_pages_of_the_repository_link_within_the_site(pages: dict[str, str]) -> None:
    assert "](../guides/" in pages["project/changelog.md"] and "](docs/" not in pages["project/changelog.md"]
    assert "](migration.md)" in pages["project/release.md"]
