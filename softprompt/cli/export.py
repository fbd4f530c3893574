"""`softprompt export`: soft prompts for other engines."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import BaseAdapter, Device, DeviceSplit, Dtype, LoadIn, Model, SavedName, TrustRemoteCode

if TYPE_CHECKING:
    from softprompt.export.base import Exported
    from softprompt.export.check import CheckReport


def export_command(
    name: SavedName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make; of vLLM's files also one that is there.")],
    to: Annotated[str, typer.Option("--to", help="Target, see below.")] = "peft",
    check: Annotated[
        bool, typer.Option("--check", help="Run the engine here on 20 texts, and compare it with softprompt.")
    ] = False,
    gguf: Annotated[
        Path | None, typer.Option("--gguf", help="llama.cpp, Ollama: the base model's file, if not that of --model.")
    ] = None,
    untie: Annotated[
        Path | None,
        typer.Option("--untie", help="gguf-lora: use a copy of this GGUF file that has output weights of its own."),
    ] = None,
    kv_type: Annotated[
        str, typer.Option("--kv-type", help="llama-slot: the server's --cache-type-k and -v: f32, f16, bf16 or q8_0.")
    ] = "f16",
    llama_server: Annotated[
        Path | None,
        typer.Option("--llama-server", help="llama.cpp: the program to run; else that in PATH, or of xllamacpp."),
    ] = None,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="vllm: replace another version.")] = False,
    dtype: Dtype = "auto",
    load_in: LoadIn = None,
    device: Device = "auto",
    device_map: DeviceSplit = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Export a soft prompt for another engine, with a README.md that has the command that runs it.

    softprompt export tone --to lora --out tone-lora

    softprompt export tone --to gguf-lora --gguf model.gguf --out tone-gguf --check

    softprompt export tone --to peft --out tone-peft

    Targets: lora (PEFT, vLLM, SGLang: an adapter on the input embedding), gguf-lora (llama.cpp, Ollama), llama-slot
    (llama-server: keys and values), mlx (mlx-lm's prompt cache), transformers (tensors and ten lines), vocabulary (a
    copy of the base model with new tokens), peft (an adapter of a prompt-learning type), vllm (vLLM with softprompt's
    connector). docs/guides/engines.md compares them.
    """
    from softprompt.cli.base_model import load_base
    from softprompt.export.base import ExportOptions, ExportSource
    from softprompt.export.check import check_export
    from softprompt.export.registry import find_target
    from softprompt.prompts import store

    target = find_target(to)
    prompt, card = store.load(store.find(name))
    source = ExportSource(
        prompt,
        card,
        functools.partial(
            load_base, model, [name], dtype, device, trust_remote_code, base_adapter, load_in, device_map
        ),
        ExportOptions(gguf or untie, untie is not None, kv_type, llama_server, overwrite),
    )
    if target.cost is not None:
        Console(soft_wrap=True).print(Text(escaped(target.cost(source))))
    exported = target.write(out, source)
    _report(card.name, to, exported)
    if check:
        _report_check(check_export(target, exported.folder, source))


def _report(name: str, to: str, exported: Exported) -> None:
    lines = [f"{name} is in {exported.folder} for {to}; its README.md says how to use it", *exported.notes]
    command = "\n".join(f"  {line}" for line in exported.command.splitlines())
    text = "\n".join([*lines, command])
    Console(soft_wrap=True).print(Text(escaped(text)))


def _report_check(report: CheckReport) -> None:
    text = (
        f"checked: {report.same} of {report.rows} greedy answers are equal; log-probabilities of the 5 likeliest tokens"
        f" differ by at most {report.difference:.2g} ({report.plain_difference:.2g} without the soft prompt)"
    )
    Console(soft_wrap=True).print(Text(escaped(text)))
