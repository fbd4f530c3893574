"""`softprompt studio`: a server with a worker and the studio, on this machine, and a browser that shows it."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.engine_options import engine_named, parse_engine_options
from softprompt.cli.options import BaseAdapter, Device, Dtype, Flags, LoadIn, Model, with_settings
from softprompt.cli.serve import EngineChoice, run_serve
from softprompt.engine.registry import BaseModelOptions
from softprompt.server.config import ServerConfig
from softprompt.settings import resolve_settings

DEFAULT_MODEL = "smollm2-135m"
_OPTIONS = {
    "prompts_dir": "",
    "prompt": "",
    "port": "",
    "served_name": "",
    "api_keys": "",
    "admin_keys": "",
    "limit": "",
    "store": "Folder of uploaded files, jobs and their soft prompts.",
    "workers": "Worker processes: they train, distill and inspect.",
    "worker_device": "Of the workers: auto, cpu, cuda, cuda:1 or mps.",
    "log": "",
}


@with_settings(ServerConfig, only=_OPTIONS, repeatable=["prompt", "limit"], defaults={})
def studio_command(
    flags: Flags,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the browser.")] = True,
    engine: Annotated[str, typer.Option(help="What runs the model, as of softprompt serve.")] = "transformers",
    dtype: Dtype = "auto",
    load_in: LoadIn = None,
    device: Device = "auto",
) -> None:
    """Open the studio in the browser: train, compare, evaluate and inspect soft prompts of one base model.

    softprompt studio

    softprompt studio --model Qwen/Qwen3-0.6B --prompts-dir prompts

    It is softprompt serve --jobs --studio on this machine, with smollm2-135m where no --model is named. Ctrl-C ends the
    server and its workers; a job that runs goes on at the next start.
    """
    settings = resolve_settings(ServerConfig, {**flags, "jobs": True, "studio": True})
    spec = engine_named(engine)
    base = BaseModelOptions(dtype, device, False, load_in, None)
    chosen = EngineChoice(spec, parse_engine_options(spec, []), base, model or DEFAULT_MODEL, base_adapter)
    run_serve(settings, chosen, on_start=lambda address: show_address(address, browser))


def show_address(address: str, browser: bool) -> None:
    """Print where the studio is, and open it in a browser if there is one with a window."""
    page, console = f"{address}/studio/", Console(soft_wrap=True)
    console.print(Text(f"studio      {page}"))
    console.print(Text(f"API         {address}/v1"))
    if browser and has_window():
        # In a thread: some browsers return when they are closed.
        threading.Thread(target=webbrowser.open, args=(page,), name="browser", daemon=True).start()
    elif browser:
        port = address.rpartition(":")[2]
        console.print(Text(f"no window   from another machine: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE"))
    console.print(Text("Ctrl-C ends it"))


def has_window() -> bool:
    """Whether a browser could show a window here."""
    return sys.platform in {"darwin", "win32"} or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
