"""`softprompt generate`: answers from one or several soft prompts in one batch, streamed, from arguments or stdin."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import (
    AsJson,
    BaseAdapter,
    ChatTemplate,
    Device,
    DeviceSplit,
    Dtype,
    LoadIn,
    Model,
    RepetitionPenalty,
    System,
    TrustRemoteCode,
    complete_names,
    parse_names,
)
from softprompt.errors import ConfigError, DataError
from softprompt.settings import unescaped

if TYPE_CHECKING:
    from softprompt.inference.answer import Answer
    from softprompt.inference.generate import Request

_BATCH = 64  # answers printed at a time: progress on long inputs is visible, and an interruption keeps it


def generate_command(
    names: Annotated[
        str,
        typer.Argument(help="Soft prompt, or several: a,b,c (each answers every text).", autocompletion=complete_names),
    ],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; - or nothing reads lines from stdin.")] = None,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only tokens that make up this probability.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer; may be repeated.")] = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    num_beams: Annotated[int, typer.Option(help="Beams of a beam search; 1 is none.")] = 1,
    n: Annotated[
        int, typer.Option("--n", "--num-return-sequences", help="Answers to each text: drawn, or the best beams.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    system: System = None,
    chat_template: ChatTemplate = "",
    base: Annotated[bool, typer.Option("--base", help="Let the base model without a prompt answer too.")] = False,
    text_prompt: Annotated[
        str | None, typer.Option(help="Let the base model with this instruction before the template answer too.")
    ] = None,
    jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl",
            help='Lines of stdin are {"prompt": NAME, "text": TEXT}, or with "messages": [...] in place of the text.',
        ),
    ] = False,
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    load_in: LoadIn = None,
    device: Device = "auto",
    device_map: DeviceSplit = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Generate with soft prompts; different prompts share one batch.

    softprompt generate tone "Where is my parcel?"

    cat questions.txt | softprompt generate tone,legal -

    echo '{"prompt": "tone", "text": "Hi"}' | softprompt generate tone,legal - --jsonl

    echo '{"messages": [{"role": "user", "content": "Hi"}]}' | softprompt generate tone - --jsonl

    For a template with several fields a text is a JSON object: '{"text": "...", "text2": "..."}'.
    """
    from softprompt.cli.base_model import load_base
    from softprompt.evaluation.routing import assign, expanded, routers_of
    from softprompt.formatting.chat_template import chat_template_of
    from softprompt.formatting.formatted_prompt import no_prompt
    from softprompt.formatting.text_prompt import text_prompt as with_instruction
    from softprompt.inference.generate import Request, generate, load_prompts
    from softprompt.inference.sampling import Sampling

    stops = tuple(map(unescaped, stop or ()))
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, stops, seed, repetition_penalty, num_beams, n)
    chosen = parse_names(names)
    routers = routers_of(chosen)
    rows = _texts(texts)
    chosen_requests = [_own_prompt(line, where, chosen) for where, line in rows] if jsonl else None
    flat = expanded(chosen, routers)
    lm = load_base(model, flat, dtype, device, trust_remote_code, base_adapter, load_in, device_map)
    formatted_prompts = load_prompts(lm, flat, chat_template=chat_template_of(chat_template), system=system)
    template = next(iter(formatted_prompts.values())).template
    if base:
        formatted_prompts["(base)"] = no_prompt(lm, template)
    if text_prompt is not None:
        formatted_prompts["(text prompt)"] = with_instruction(lm, template, unescaped(text_prompt))
    columns = [*chosen, *(name for name in formatted_prompts if name not in flat)]
    requests = chosen_requests or [Request(text, name, where) for where, text in rows for name in columns]
    requests = assign(lm, routers, formatted_prompts, requests)
    if len(requests) == n == 1 and not as_json:  # stream
        generate(lm, formatted_prompts, requests, sampling, on_text=lambda _, new: _write(new))
        _write("\n")
        return
    console = Console(soft_wrap=True)
    for start in range(0, len(requests), _BATCH):
        part, draw = requests[start : start + _BATCH], replace(sampling, seed=seed + start * n)
        asked = [request for request in part for _ in range(n)]
        for i, (request, result) in enumerate(zip(asked, generate(lm, formatted_prompts, part, draw), strict=True)):
            if as_json:
                index = {"index": i % n} if n > 1 else {}
                typer.echo(json.dumps(_line(request, result) | index, ensure_ascii=False))
            else:
                console.print(_block(request, result))


def _line(request: Request, result: Answer) -> dict[str, object]:
    asked = {"text": request.text} if isinstance(request.text, str) else {"messages": request.text}
    return {"prompt": request.name, **asked, "answer": result.text, "finish_reason": result.finish}


def _block(request: Request, result: Answer) -> Text:
    asked = request.text if isinstance(request.text, str) else str(request.text[-1])
    return Text.assemble(
        (f"{request.name:<12} ", "bold"), (escaped(asked[:60]), "dim"), "\n  ", escaped(result.text.strip())
    )


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
    fields: dict[str, Any] = row if isinstance(row, dict) else {}
    name = fields.get("prompt", names[0] if len(names) == 1 else None)
    asked = fields.get("messages") if isinstance(fields.get("messages"), list) else fields.get("text")
    if name not in names or not isinstance(asked, str | list):
        expected = f'{{"prompt": one of {", ".join(names)}, "text": "..."}}, or "messages": [...] in place of "text"'
        raise DataError("the line is not a request", where=where, expected=expected, got=line[:80])
    return Request(asked, name, where, fields.get("tools"))


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
