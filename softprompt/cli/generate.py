"""`softprompt generate`: answers from one or several soft prompts in one batch, streamed, from arguments or stdin."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import AsJson, BaseAdapter, Device, Dtype, Model, TrustRemoteCode, parse_names
from softprompt.errors import ConfigError, DataError
from softprompt.settings import unescaped

if TYPE_CHECKING:
    from softprompt.formatting.formatted_prompt import FormattedPrompt
    from softprompt.inference.decoding import Answer
    from softprompt.inference.generate import Request
    from softprompt.models.frozen_lm import FrozenLM

_BATCH = 64  # answers printed at a time: progress on long inputs is visible, and an interruption keeps it


def generate_command(
    names: Annotated[str, typer.Argument(help="Soft prompt, or several: a,b,c (each answers every text).")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; - or nothing reads lines from stdin.")] = None,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only tokens that make up this probability.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    base: Annotated[bool, typer.Option("--base", help="Let the base model without a prompt answer too.")] = False,
    jsonl: Annotated[
        bool,
        typer.Option("--jsonl", help='Lines of stdin are {"prompt": NAME, "text": TEXT}, for one prompt each.'),
    ] = False,
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Generate with soft prompts; different prompts share one batch.

    softprompt generate tone "Where is my parcel?"

    cat questions.txt | softprompt generate tone,legal -

    echo '{"prompt": "tone", "text": "Hi"}' | softprompt generate tone,legal - --jsonl

    For a template with several fields a text is a JSON object: '{"text": "...", "text2": "..."}'.
    """
    from softprompt.cli.base_model import load_base
    from softprompt.evaluation.routing import assign, expanded, routers_of
    from softprompt.inference.generate import Request, generate
    from softprompt.inference.sampling import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, tuple(map(unescaped, stop or ())), seed)
    chosen = parse_names(names)
    routers = routers_of(chosen)
    rows = _texts(texts)
    chosen_requests = [_own_prompt(line, where, chosen) for where, line in rows] if jsonl else None
    flat = expanded(chosen, routers)
    lm = load_base(model, flat, dtype, device, trust_remote_code, base_adapter)
    formatted_prompts = _formatted_prompts(lm, flat, base)
    columns = [*chosen, *(name for name in formatted_prompts if name not in flat)]
    requests = chosen_requests or [Request(text, name, where) for where, text in rows for name in columns]
    requests = assign(lm, routers, formatted_prompts, requests)
    if len(requests) == 1 and not as_json:  # stream
        generate(lm, formatted_prompts, requests, sampling, on_text=lambda _, new: _write(new))
        _write("\n")
        return
    console = Console(soft_wrap=True)
    for start in range(0, len(requests), _BATCH):
        part, draw = requests[start : start + _BATCH], replace(sampling, seed=seed + start)
        for request, result in zip(part, generate(lm, formatted_prompts, part, draw), strict=True):
            if as_json:
                typer.echo(json.dumps(_line(request, result), ensure_ascii=False))
            else:
                console.print(_block(request, result))


def _line(request: Request, result: Answer) -> dict[str, str]:
    return {
        "prompt": request.name,
        "text": request.text,
        "answer": result.text,
        "finish_reason": result.finish,
    }


def _block(request: Request, result: Answer) -> Text:
    question, said = escaped(request.text[:60]), escaped(result.text.strip())
    return Text.assemble((f"{request.name:<12} ", "bold"), (question, "dim"), "\n  ", said)


def _formatted_prompts(lm: FrozenLM, names: list[str], base: bool) -> dict[str, FormattedPrompt]:
    from softprompt.formatting.formatted_prompt import no_prompt
    from softprompt.inference.generate import load_prompts

    formatted_prompts = load_prompts(lm, names)
    if base:
        formatted_prompts["(base)"] = no_prompt(lm, next(iter(formatted_prompts.values())).template)
    return formatted_prompts


def _texts(texts: list[str] | None) -> list[tuple[str, str]]:
    """(where, text) of every text."""
    if texts and texts != ["-"]:
        return [(f"text {i}", _utf8(os.fsencode(text), f"text {i}")) for i, text in enumerate(texts, 1)]
    if sys.stdin.isatty():
        Console(stderr=True).print("reading lines from the terminal; end with Ctrl-D", style="dim")
    lines = [(f"stdin:{i}", raw.rstrip(b"\r\n")) for i, raw in enumerate(sys.stdin.buffer, 1)]
    rows = [(where, _utf8(raw, where)) for where, raw in lines if raw.strip()]
    if not rows:
        raise ConfigError("there is nothing to answer", where="stdin", hint='softprompt generate NAME "your text"')
    return rows


def _own_prompt(line: str, where: str, names: list[str]) -> Request:
    """A line of --jsonl."""
    from softprompt.inference.generate import Request

    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or row.get("prompt") not in names or not isinstance(row.get("text"), str):
        expected = f'{{"prompt": one of {", ".join(names)}, "text": "..."}}'
        raise DataError("the line is not a request", where=where, expected=expected, got=line[:80])
    return Request(row["text"], row["prompt"], where)


def _utf8(raw: bytes, where: str) -> str:
    """Bytes as text, whatever the locale is."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        got, hint = f"byte 0x{raw[error.start]:02x}", "iconv -f LATIN1 -t UTF-8 makes it so"
        raise DataError("the text is not UTF-8", where=where, got=got, hint=hint) from error


def _write(text: str) -> None:
    sys.stdout.write(escaped(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
