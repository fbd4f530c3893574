"""The pages of the docs site that come from the code: commands, settings, Python, files, HTTP and metrics.

`make docs` runs this through mkdocs-gen-files; `pages()` gives the same to the tests.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pydantic import BaseModel

import softprompt
from softprompt.cli.main import command_of
from softprompt.cli.verbs import Verb, all_verbs
from softprompt.prompts.card import Card
from softprompt.settings import flag_of

ROOT = Path(__file__).parents[1]
REPOSITORY_PAGES = ("CHANGELOG.md", "MIGRATION.md", "RELEASE.md", "ROADMAP.md", "CONTRIBUTING.md", "SECURITY.md")


def pages() -> dict[str, str]:
    """Markdown by path below docs/."""
    made = {
        "reference/cli.md": commands(),
        "reference/settings.md": settings(),
        "reference/python.md": python_names(),
        "reference/card.md": card_schema(),
        "reference/http.md": http_paths(),
        "reference/metrics.md": metrics(),
    }
    for name in REPOSITORY_PAGES:
        made[f"project/{name.lower()}"] = from_repository((ROOT / name).read_text(encoding="utf-8"))
    return made | example_pages()


def from_repository(text: str) -> str:
    """A page of the repository's root, with its links as seen from docs/project/."""
    text = text.replace("](docs/", "](../")
    for name in REPOSITORY_PAGES:
        text = text.replace(f"]({name}", f"]({name.lower()}")
    return text


def example_pages() -> dict[str, str]:
    """The READMEs of examples/, and the pages of docs/ that link to them, with links as seen inside the site."""
    made = dict[str, str]()
    for path in (ROOT / "examples").rglob("README.md"):
        text = path.read_text(encoding="utf-8").replace("](../../docs/", "](../../").replace("](../docs/", "](../")
        name = path.relative_to(ROOT).as_posix()
        made[name] = re.sub(r"\[([^]]*)\]\([\w.]+\.ipynb\)", r"`\1`", text)  # notebooks are read on a code host
    for path in (ROOT / "docs").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        inside = re.sub(r"\]\(\.\./((?:\.\./)*examples/)", r"](\1", text)
        if inside != text:
            made[path.relative_to(ROOT / "docs").as_posix()] = inside
    return made


def commands() -> str:
    """Every verb with its help."""
    lines = ["# Commands", "", "Generated from the code. `softprompt VERB --help` prints the same.", ""]
    for verb in all_verbs().values():
        for name, command in _with_own_verbs(verb):
            lines += [f"## softprompt {name}", "", "```text", *_help_of(name, command), "```", ""]
    return "\n".join(lines)


def _with_own_verbs(verb: Verb) -> Iterator[tuple[str, Any]]:
    command = command_of(verb)
    own = cast(dict[str, Any], getattr(command, "commands", {}))
    if not own:
        yield verb.name, command
    for name, nested in own.items():
        yield f"{verb.name} {name}", nested


def _help_of(name: str, command: Any) -> list[str]:
    context = command.make_context(f"softprompt {name}", [], resilient_parsing=True, terminal_width=100)
    return [line.rstrip() for line in command.get_help(context).splitlines()]


def settings() -> str:
    """Every setting of a training, a distillation and the server, with its default."""
    from softprompt.distillation.config import DistillConfig
    from softprompt.methods.config import MethodConfig
    from softprompt.methods.registry import method_specs
    from softprompt.server.config import ServerConfig
    from softprompt.training.config import Config

    text = "Settings of YAML files, of the environment (`SOFTPROMPT__TRAIN__LR=0.05`) and of flags (`--train.lr 0.05`)."
    lines = ["# Settings", "", f"Generated from the code. {text}", ""]
    for title, model in (("train", Config), ("distill", DistillConfig), ("serve", ServerConfig)):
        lines += [f"## softprompt {title}", "", *_table_of(model), ""]
    shared = MethodConfig.model_fields.keys()
    lines += ["## Every method", "", *_table_of(MethodConfig, "method."), ""]
    for name, spec in method_specs().items():
        own = spec.settings.model_fields.keys() - shared
        if own:
            lines += [f"## Method {name}", "", *_table_of(spec.settings, "method.", without=shared), ""]
    return "\n".join(lines)


def _table_of(model: type[BaseModel], prefix: str = "", without: Collection[str] = ()) -> list[str]:
    return ["| setting | flag | default | meaning |", "|---|---|---|---|", *_rows_of(model, prefix, without)]


def _rows_of(model: type[BaseModel], prefix: str, without: Collection[str] = ()) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name in without:
            continue
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel) and name != "method":
            yield from _rows_of(field.annotation, f"{prefix}{name}.")
            continue
        default = "" if field.is_required() or field.default_factory else json.dumps(field.default, default=str)
        flag = flag_of(field)
        meaning = (flag.help or field.description or "").replace("|", "\\|")
        flags = ", ".join(f"`{spelling}`" for spelling in flag.names)
        yield f"| `{prefix}{name}` | {flags} | `{default}` | {meaning} |"


def python_names() -> str:
    """Every public name, by mkdocstrings."""
    lines = ["# Python", "", "Generated from the docstrings. All names are those of `import softprompt`.", ""]
    for module, names in softprompt._PUBLIC.items():  # pyright: ignore[reportPrivateUsage]
        lines += [f"::: {module}.{name}\n    options:\n      heading_level: 2\n" for name in names]
    return "\n".join(lines)


def card_schema() -> str:
    """The card's JSON schema."""
    schema = json.dumps(Card.model_json_schema(), indent=2, ensure_ascii=False)
    text = "A soft prompt is a folder: `prompt.safetensors`, `card.json`, `README.md`. This is the card's JSON schema."
    return f"# The card\n\nGenerated from the code. {text}\n\n```json\n{schema}\n```\n"


def http_paths() -> str:
    """Paths of the server and the fields that each accepts, from its OpenAPI document."""
    document = _openapi()
    lines = ["# HTTP API", "", "Generated from the OpenAPI document, which `softprompt serve --openapi` serves."]
    lines += ["[The server](../server.md) explains what the fields do."]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            meaning = operation.get("description") or operation.get("summary", "")
            lines += ["", f"## {method.upper()} {path}", "", meaning]
            for body in operation.get("requestBody", {}).get("content", {}).values():
                lines += ["", *_fields(body["schema"])]
    lines += ["", "## GET /metrics", "", "[The metrics](metrics.md) in Prometheus' text format."]
    lines += ["", "## GET /openapi.json", "", "This document, of a server with `--openapi`."]
    return "\n".join(lines) + "\n"


def _openapi() -> dict[str, Any]:
    """The document of a server without a model: routes are the same."""
    from softprompt.server.api_keys import ApiKeys
    from softprompt.server.app import create_app
    from softprompt.server.metrics import ServerMetrics

    unread: Any = None  # nobody reads the metrics of this server
    metrics = ServerMetrics(unread, unread)
    service: Any = SimpleNamespace(name="base", rate_limit=None, metrics=metrics, limits=None, directory=None)
    return create_app(service, ApiKeys(), openapi=True, jobs=cast(Any, SimpleNamespace(files=None))).openapi()


def _fields(schema: dict[str, Any]) -> Iterator[str]:
    needed = schema.get("required", [])
    yield from ("| field | values | |", "|---|---|---|")
    for name, field in sorted(schema.get("properties", {}).items(), key=lambda item: (item[0] not in needed, item[0])):
        note = "needed" if name in needed else "no effect" if field.get("description") == "Has no effect." else ""
        yield f"| `{name}` | {_values(field)} | {note} |"


def _values(field: dict[str, Any]) -> str:
    """The values that a field takes, in words."""
    choices = field.get("anyOf") or field.get("oneOf")
    if choices:
        kinds = [_values(choice) for choice in choices if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if field.get("type") == "array":
        return f"list of {_values(field.get('items', {}))}"
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [f"{words} {field[limit]:g}" for limit, words in limits.items() if limit in field]
    return " ".join(filter(None, [str(field.get("type", "any")), ", ".join(bounds)]))


def metrics() -> str:
    """The server's metrics."""
    from softprompt.engine.base import EngineStats
    from softprompt.server.metrics import PromptCacheStats, ServerMetrics

    measured = ServerMetrics(lambda: EngineStats(0, 0, 0.0), lambda: PromptCacheStats(0, 0, 0, 0))
    lines = ["# Metrics", "", "Generated from the code; `/metrics` of the server, in Prometheus' text format.", ""]
    lines += ["| metric | type | meaning |", "|---|---|---|"]
    lines += [f"| `{one.name}` | {one.type} | {one.documentation} |" for one in measured.registry.collect()]
    return "\n".join(lines) + "\n"


if __name__ == "<run_path>":  # as mkdocs-gen-files runs it
    mkdocs_gen_files = importlib.import_module("mkdocs_gen_files")
    for path, text in pages().items():
        with mkdocs_gen_files.open(path, "w") as file:
            file.write(text)
