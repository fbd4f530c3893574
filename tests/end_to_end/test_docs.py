"""The docs site: every page is reachable, and every public name, verb, setting, path and error has its place.

mkdocs itself runs in `make docs`, strictly: links, anchors and docstrings are checked there.
"""

from __future__ import annotations

import ast
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from starlette.routing import Route

import softprompt
from softprompt import errors
from softprompt.cli.main import command_of
from softprompt.cli.verbs import all_verbs
from softprompt.distillation.config import DistillConfig
from softprompt.prompts.card import Card
from softprompt.server.api_keys import ApiKeys
from softprompt.server.app import create_app
from softprompt.server.config import ServerConfig
from softprompt.server.metrics import ServerMetrics
from softprompt.settings import known_keys
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


def test_every_public_name_has_a_page(pages: dict[str, str]) -> None:
    python = pages["reference/python.md"]
    assert [name for name in softprompt.__all__ if f".{name}\n" not in python] == []


def test_every_verb_has_a_page(pages: dict[str, str]) -> None:
    commands = pages["reference/cli.md"]
    for name, verb in all_verbs().items():
        for nested in getattr(command_of(verb), "commands", {"": None}):
            assert f"## softprompt {f'{name} {nested}'.strip()}\n" in commands


@pytest.mark.parametrize("kind", [Config, DistillConfig, ServerConfig])
def test_every_setting_has_a_page(kind: type[BaseModel], pages: dict[str, str]) -> None:
    assert [name for name in known_keys(kind) if f"| `{name}` |" not in pages["reference/settings.md"]] == []


def test_every_endpoint_has_a_page(pages: dict[str, str]) -> None:
    """By the routes of a server with jobs, those included that its OpenAPI document leaves out."""
    unread: Any = None
    metrics = ServerMetrics(unread, unread)
    service: Any = SimpleNamespace(name="base", rate_limit=None, metrics=metrics, limits=None, directory=None)
    jobs: Any = SimpleNamespace(files=None)
    routes = [
        route for route in create_app(service, ApiKeys(), openapi=True, jobs=jobs).routes if isinstance(route, Route)
    ]
    ends = {
        f"{method} {route.path.replace(':path}', '}')}"
        for route in routes
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert len(ends) > 40
    assert [end for end in sorted(ends) if f"## {end}\n" not in pages["reference/http.md"]] == []
    assert "| `max_tokens` | integer at least 0 |" in pages["reference/http.md"]


def test_every_error_has_a_page() -> None:
    """Exceptions of the package, and codes that the server answers with, by its source."""
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    known = [name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)]
    assert [name for name in known if f"| `{name}` |" not in page] == []
    codes = set(codes_of_the_server())
    assert {"rate_limit_exceeded", "invalid_json", "context_length_exceeded"} <= codes
    assert sorted(code for code in codes if f"`{code}`" not in page) == []


def codes_of_the_server() -> Iterator[str]:
    """Literal codes in calls of `ApiError` and `invalid`."""
    for path in (ROOT / "softprompt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ApiError", "invalid"):
                codes = [*node.args[2:3], *(word.value for word in node.keywords if word.arg == "code")]
                yield from (str(code.value) for code in codes if isinstance(code, ast.Constant))


def test_the_other_formats_have_a_page(pages: dict[str, str]) -> None:
    schema = json.loads(pages["reference/card.md"].partition("```json\n")[2].partition("\n```")[0])
    assert schema["properties"].keys() == Card.model_fields.keys()
    assert "`softprompt_num_requests_running` | gauge" in pages["reference/metrics.md"]


def test_pages_of_the_repository_link_within_the_site(pages: dict[str, str]) -> None:
    assert "](../guides/" in pages["project/changelog.md"] and "](docs/" not in pages["project/changelog.md"]
    assert "](migration.md)" in pages["project/release.md"]


def test_links_to_examples_stay_within_the_site(pages: dict[str, str]) -> None:
    assert "](examples/README.md)" in pages["index.md"] and "](../examples/" in pages["guides/jobs.md"]
    assert "](../../guides/jobs.md)" in pages["examples/jobs_with_openai_client/README.md"]
    assert all("](../../docs/" not in text and ".ipynb)" not in text for text in pages.values())
