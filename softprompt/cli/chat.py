"""`softprompt chat`: a conversation with a soft prompt in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import (
    BaseAdapter,
    ChatTemplate,
    Device,
    DeviceSplit,
    Dtype,
    LoadIn,
    Model,
    RepetitionPenalty,
    SavedName,
    System,
    TrustRemoteCode,
)
from softprompt.errors import DataError

if TYPE_CHECKING:
    from softprompt.inference.chat import ChatSession

_HELP = "/reset starts anew, /exit or Ctrl-D ends, Ctrl-C stops an answer"


def chat_command(
    name: SavedName,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Only tokens that make up this probability.")] = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    system: System = None,
    chat_template: ChatTemplate = "",
    dtype: Dtype = "auto",
    load_in: LoadIn = None,
    device: Device = "auto",
    device_map: DeviceSplit = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Chat with a soft prompt. If it was trained on plain text, each line is answered on its own."""
    from softprompt.cli.base_model import load_base
    from softprompt.formatting.chat_template import chat_template_of
    from softprompt.inference.chat import ChatSession
    from softprompt.inference.generate import load_prompts
    from softprompt.inference.sampling import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p=top_p, seed=seed, repetition_penalty=repetition_penalty)
    lm = load_base(model, [name], dtype, device, trust_remote_code, base_adapter, load_in, device_map)
    formatted = load_prompts(lm, [name], chat_template=chat_template_of(chat_template), system=system)[name]
    session = ChatSession(lm, formatted, sampling)
    console = Console(stderr=True)
    console.print(_HELP, style="dim")
    while (line := _line()) is not None and line != "/exit":
        if line == "/reset":
            session.reset()
        elif line.startswith("/"):
            console.print(_HELP, style="dim")
        elif line:
            _answer(session, line, console)


def _line() -> str | None:
    """The next line typed; None at the end of the input."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            return input(prompt).strip()
        except EOFError:
            return None
        except KeyboardInterrupt:  # nothing to stop: a new line
            _write("\n")


def _answer(session: ChatSession, line: str, console: Console) -> None:
    """Stream one answer; a text that does not fit is reported, and the conversation continues without it."""
    try:
        session.say(line, on_text=lambda new: _write(escaped(new)))
    except KeyboardInterrupt:
        console.print(" (stopped)", style="dim", end="")
    except DataError as error:
        console.print(Text(escaped(error.render()), "red"))
        return
    _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
