"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str | None, typer.Option("--model", "-m", help="Base model: Hub id, folder, GGUF, smollm2-135m.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the base model.")
]


def unescaped(text: str) -> str:
    r"""A text from the command line with \n and \t as line break and tab, which shells make hard to type."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
