"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompt.errors import ConfigError

Model = Annotated[str | None, typer.Option("--model", "-m", help="Base model: Hub id, folder, GGUF, smollm2-135m.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the base model.")
]


def unescaped(text: str) -> str:
    r"""A text from the command line with \n and \t as line break and tab, which shells make hard to type."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def named(names: str) -> list[str]:
    """The soft prompts of an argument `a,b,c`, each once. Raises ConfigError if there is none."""
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not chosen:
        raise ConfigError("no soft prompt is named", got=names, hint="softprompt list shows what is there")
    return chosen


Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="Score answers with this too: f1, …, or FILE.py:function of yours (answer, references); may be repeated.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
