"""`softprompt generate`: answers from one or several soft prompts in one batch, streamed, from arguments or stdin."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.options import AsJson, Device, Dtype, Model, TrustRemoteCode
from softprompt.cli.visible import visible
from softprompt.errors import ConfigError

if TYPE_CHECKING:
    from softprompt.framing import Subject
    from softprompt.model import FrozenLM


def generate_command(
    names: Annotated[str, typer.Argument(help="Soft prompt, or several: a,b,c (each answers every text).")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; - or nothing reads lines from stdin.")] = None,
    model: Model = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only tokens that make up this probability.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    base: Annotated[bool, typer.Option("--base", help="Let the base model without a prompt answer too.")] = False,
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Generate with soft prompts; different prompts share one batch.

    softprompt generate tone "Where is my parcel?"
    cat questions.txt | softprompt generate tone,legal -
    """
    from softprompt.cli.loading import base_of, load_base
    from softprompt.decode import Sampling
    from softprompt.generation import Request, answer

    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, tuple(stop or ()), seed)
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if not chosen:
        raise ConfigError("no soft prompt is named", got=names, hint='softprompt generate NAME "your text"')
    rows = _texts(texts)
    lm = load_base(model or base_of(chosen), dtype, device, trust_remote_code)
    subjects = _subjects(lm, chosen, base)
    requests = [Request(text, name) for text in rows for name in subjects]
    single = len(requests) == 1 and not as_json
    if single:  # stream
        answer(lm, subjects, requests, sampling, on_text=lambda _, new: _write(new))
        _write("\n")
        return
    console = Console(soft_wrap=True)
    for request, result in zip(requests, answer(lm, subjects, requests, sampling), strict=True):
        if as_json:
            line = {
                "prompt": request.name,
                "text": request.text,
                "answer": result.text,
                "finish_reason": result.finish,
            }
            typer.echo(json.dumps(line, ensure_ascii=False))
        else:
            console.print(
                Text.assemble(
                    (f"{request.name:<12} ", "bold"),
                    (visible(request.text[:60]), "dim"),
                    "\n  ",
                    visible(result.text.strip()),
                )
            )


def _subjects(lm: FrozenLM, names: list[str], base: bool) -> dict[str, Subject]:
    from softprompt.framing import base_subject
    from softprompt.generation import load_subjects

    subjects = load_subjects(lm, names)
    if base:
        subjects["(base)"] = base_subject(lm, next(iter(subjects.values())).template)
    return subjects


def _texts(texts: list[str] | None) -> list[str]:
    if texts and texts != ["-"]:
        return [text.replace("\\n", "\n") for text in texts]
    if sys.stdin.isatty():
        Console(stderr=True).print("reading lines from the terminal; end with Ctrl-D", style="dim")
    lines = [line.rstrip("\n") for line in sys.stdin]
    rows = [line for line in lines if line.strip()]
    if not rows:
        raise ConfigError("there is nothing to answer", where="stdin", hint='softprompt generate NAME "your text"')
    return rows


def _write(text: str) -> None:
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
