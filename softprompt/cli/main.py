"""`softprompt`: the app with the verbs of `verbs.py`; an error is one message, no traceback, exit code 1."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from softprompt.cli.escape import escaped
from softprompt.cli.verbs import SECTIONS, Verb, all_verbs, find_verb
from softprompt.deprecation import RenamedWarning, warn_renamed
from softprompt.errors import ModelError, SoftpromptError, StoreError, is_out_of_memory

if TYPE_CHECKING:  # for types alone: where Typer keeps its click is private to it
    from typer._click import Command, Context, HelpFormatter

_plain_typer = partial(typer.Typer, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_OTHER_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


class VerbGroup(TyperGroup):
    """The table of verbs as a Typer group: a verb's module is imported when the verb is used."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Names of all verbs."""
        return list(all_verbs())

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """The command of a verb, None if there is no such verb; an old name warns."""
        verb, renamed = find_verb(cmd_name)
        if verb is None:
            return None
        if renamed:
            warn_renamed(f"softprompt {cmd_name}", f"softprompt {verb.name}")
        return command_of(verb)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Each section with its verbs, one line each, from the table: no verb's module is imported."""
        verbs = all_verbs().values()
        width = max(len(verb.name) for verb in verbs)
        for section in dict.fromkeys([*SECTIONS, *(verb.section for verb in verbs)]):
            rows = [(verb.name.ljust(width), verb.summary) for verb in verbs if verb.section == section]
            with formatter.section(section):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """The command that the first argument names; a wrong name ends with the closest ones."""
        if not args[0].startswith("-") and find_verb(args[0])[0] is None:
            close = ", ".join(map(repr, get_close_matches(args[0], all_verbs())))
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {close}?" if close else ""))
        return super().resolve_command(ctx, args)


def command_of(verb: Verb) -> Command:
    """A verb's command, as Typer makes it; imports the verb's module."""
    target = verb.load()
    parent = _plain_typer()
    if isinstance(target, typer.Typer):
        parent.add_typer(target, name=verb.name)
    else:
        rest = _OTHER_FLAGS if verb.other_flags else None
        parent.command(verb.name, cls=verb.command_class(), context_settings=rest)(target)
    command = typer.main.get_command(parent)  # of a parent with one function: the command itself
    return getattr(command, "commands", {}).get(verb.name, command)


app = _plain_typer(
    cls=VerbGroup,
    no_args_is_help=True,
    help="Train, study and serve soft prompts for frozen language models.",
)


@app.callback()
def settings(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Options before the verb."""
    os.environ["SOFTPROMPT_DEBUG"] = "1" if debug else os.environ.get("SOFTPROMPT_DEBUG", "")


def run() -> None:
    """Entry point: run a verb; a `SoftpromptError` becomes a message and exit code 1."""
    one_line_warnings()
    try:
        app()
    except SoftpromptError as error:
        fail(error)
    except BrokenPipeError:  # `softprompt list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # no module's own error: an unreadable folder, a full disk
        fail(StoreError(error.strerror or str(error), where=error.filename), error)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        hint = "fewer or shorter texts at a time, --dtype bfloat16, or a machine with more memory"
        fail(ModelError("out of memory", got=str(error).splitlines()[0], hint=hint), error)


def _is_not_about_enums(record: logging.LogRecord) -> bool:
    """Not what torch logs of torchao's enums, which Transformers imports with every model if it is installed."""
    return "Enum subclass" not in record.getMessage()


def one_line_warnings() -> None:
    """Print a warning of this package as one line on stderr, once, without the place in the code."""
    logging.getLogger("torch.utils._pytree").addFilter(_is_not_about_enums)
    shown, package = set[str](), str(Path(__file__).parents[1])
    default = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, RenamedWarning) and not filename.startswith(package):
            default(message, category, filename, lineno, file, line)
        elif str(message) not in shown:
            shown.add(str(message))
            Console(stderr=True, soft_wrap=True).print(Text.assemble(("warning: ", "yellow"), escaped(str(message))))

    warnings.showwarning = show
    warnings.simplefilter("always", RenamedWarning)


def fail(error: SoftpromptError, cause: Exception | None = None) -> NoReturn:
    """Print the message on stderr and exit with 1; raise it instead with --debug."""
    if os.environ.get("SOFTPROMPT_DEBUG", "0") not in {"", "0"}:
        raise error from cause
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), escaped(error.render())))
    sys.exit(1)


if __name__ == "__main__":
    run()
