"""`softprompt demo`: the example rows in a folder of the user's, and what to type next."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.errors import StoreError
from softprompt.files import check_writable, write_file

EXAMPLE = "helpdesk"
_SPLITS = ("train.jsonl", "validation.jsonl", "test.jsonl")


def demo_command(
    folder: Annotated[Path, typer.Argument(help="Where the rows go.")] = Path(EXAMPLE),
) -> None:
    """Write the example rows into a folder: customer messages, with queue and urgency as JSON.

    softprompt demo

    softprompt train --data helpdesk --name helpdesk --minutes 4

    648 rows in three files, to train, validate and test on. Nothing is downloaded, and no file is replaced.
    """
    check_writable(folder)
    rows = {name: example_file(name) for name in _SPLITS}
    for name, content in rows.items():
        if (folder / name).exists() and (folder / name).read_bytes() != content:
            hint = f"another folder: softprompt demo {folder}-2"
            raise StoreError("already there with other rows, nothing was written", where=folder / name, hint=hint)
    for name, content in rows.items():
        write_file(folder / name, content, overwrite=True)
    console = Console(soft_wrap=True)
    for name, content in rows.items():
        console.print(Text(f"{folder / name}  {len(content.splitlines())} rows"))
    console.print(Text("next  " + "\n      ".join(next_commands(folder)), "dim"))


def example_file(name: str) -> bytes:
    """Content of a file of the example: beside the package in a wheel, in examples/ of a checkout."""
    inside = files("softprompt") / "examples" / EXAMPLE / name
    if inside.is_file():
        return inside.read_bytes()
    return (Path(__file__).parents[2] / "examples" / EXAMPLE / name).read_bytes()


def next_commands(folder: Path) -> list[str]:
    """What to type next."""
    return [
        f"softprompt data check {folder}",
        f"softprompt train --data {folder} --name helpdesk --minutes 4",
        f"softprompt eval helpdesk --data {folder}",
    ]
