"""`softprompt`: the app, its verbs, and how mistakes are shown: one message, no traceback, exit code 1."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.engine_options import EngineCommand
from softprompt.cli.escape import escaped
from softprompt.errors import ModelError, SoftpromptError, StoreError, is_out_of_memory

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train, study and serve soft prompts for frozen language models.",
)


@app.callback()
def settings(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Options before the verb."""
    os.environ["SOFTPROMPT_DEBUG"] = "1" if debug else os.environ.get("SOFTPROMPT_DEBUG", "")


def _register() -> None:
    """Verbs import their machinery when called, so that --help stays quick."""
    from softprompt.cli import (
        chat,
        compose,
        data,
        distill,
        doctor,
        evaluate,
        fidelity,
        generate,
        import_export,
        list_show,
        models,
        prune,
        serve,
        similar,
        sweep,
        train,
    )

    options = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("train", context_settings=options)(train.train_command)
    app.command("distil", context_settings=options)(distill.distill_command)
    app.command("fidelity")(fidelity.fidelity_command)
    app.command("sweep", context_settings=options)(sweep.sweep_command)
    app.command("eval")(evaluate.eval_command)
    app.command("generate")(generate.generate_command)
    app.command("chat")(chat.chat_command)
    app.command("serve", cls=EngineCommand, context_settings=options)(serve.serve_command)
    app.command("compose")(compose.compose_command)
    app.command("prune")(prune.prune_command)
    app.command("similar")(similar.similar_command)
    app.command("list")(list_show.list_command)
    app.command("show")(list_show.show_command)
    app.command("import")(import_export.import_command)
    app.command("export")(import_export.export_command)
    app.add_typer(data.app, name="data")
    app.command("models")(models.models_command)
    app.command("doctor")(doctor.doctor_command)


def run() -> None:
    """Entry point: run a verb; a `SoftpromptError` becomes a message and exit code 1."""
    try:
        app()
    except SoftpromptError as error:
        fail(error)
    except BrokenPipeError:  # `softprompt list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # what no module foresaw: a folder that may not be read, a disk that is full
        fail(StoreError(error.strerror or str(error), where=error.filename), error)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        hint = "fewer or shorter texts at a time, --dtype bfloat16, or a machine with more memory"
        fail(ModelError("out of memory", got=str(error).splitlines()[0], hint=hint), error)


def fail(error: SoftpromptError, cause: Exception | None = None) -> NoReturn:
    """Print the message on stderr and exit with 1; raise it instead with --debug."""
    if os.environ.get("SOFTPROMPT_DEBUG", "0") not in {"", "0"}:
        raise error from cause
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), escaped(error.render())))
    sys.exit(1)


_register()

if __name__ == "__main__":
    run()
