"""The verbs of the command line: one table, from which come lazy imports, `--help` and its sections.

A verb of another package is added by `register`, or by an entry point of the group `softprompt.verbs` that names a
`Verb`:

    [project.entry-points."softprompt.verbs"]
    distance = "my_package.verbs:DISTANCE"
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

import typer
from typer.core import TyperCommand

_ENTRY_POINTS = "softprompt.verbs"
SECTIONS = (
    "Learn",
    "Use",
    "Look",
    "Move",
    "Serve",
    "Manage",
)  # in this order in --help; those of other packages follow


@dataclass(frozen=True)
class Verb:
    """One verb of `softprompt`.

    Args:
        name: as typed.
        module: imported when the verb is used or its own help is shown.
        function: name of a function in it that Typer reads, or of a `typer.Typer` with verbs of its own.
        section: title in `softprompt --help` under which the verb is listed.
        summary: its line there, at most 64 characters.
        other_flags: whether flags that its function does not name are passed to it (in `typer.Context.args`), such as
            --train.lr 0.1.
        command: dotted path of a subclass of `typer.core.TyperCommand`, if it needs one of its own.
        old_names: names of earlier releases, which work with a warning and are not listed.
    """

    name: str
    module: str
    function: str
    section: str
    summary: str
    other_flags: bool = False
    command: str = ""
    old_names: tuple[str, ...] = ()

    def load(self) -> Callable[..., None] | typer.Typer:
        """Its function, or its own Typer app; imports the module."""
        return getattr(importlib.import_module(self.module), self.function)

    def command_class(self) -> type[TyperCommand]:
        """The class of its command; imports the module of that class."""
        module, _, name = self.command.rpartition(".")
        return getattr(importlib.import_module(module), name) if module else TyperCommand


def _builtin(
    name: str,
    module: str,
    function: str,
    section: str,
    summary: str,
    *,
    other_flags: bool = False,
    command: str = "",
    old_names: tuple[str, ...] = (),
) -> Verb:
    return Verb(name, f"softprompt.cli.{module}", function, section, summary, other_flags, command, old_names)


BUILT_IN_VERBS = (
    _builtin("demo", "demo", "demo_command", "Learn", "Write example rows to try everything with."),
    _builtin("train", "train", "train_command", "Learn", "Train a soft prompt.", other_flags=True),
    _builtin(
        "distill",
        "distill",
        "distill_command",
        "Learn",
        "Distill a long text into a few virtual tokens.",
        other_flags=True,
        old_names=("distil",),
    ),
    _builtin(
        "sweep",
        "sweep",
        "sweep_command",
        "Learn",
        "Try many settings at once and keep the best.",
        other_flags=True,
    ),
    _builtin(
        "compose",
        "compose",
        "compose_command",
        "Learn",
        "Make a soft prompt from saved ones: sum, join, resize.",
    ),
    _builtin("prune", "prune", "prune_command", "Learn", "Keep the virtual tokens that matter most."),
    _builtin("data", "data", "data_app", "Learn", "Check, preview and convert training data."),
    _builtin("generate", "generate", "generate_command", "Use", "Generate with one or several soft prompts."),
    _builtin("chat", "chat", "chat_command", "Use", "Chat with a soft prompt in the terminal."),
    _builtin("eval", "evaluate", "eval_command", "Look", "Compare with the base model and a text prompt."),
    _builtin("fidelity", "fidelity", "fidelity_command", "Look", "Compare a distilled prompt with its full text."),
    _builtin(
        "inspect",
        "inspect",
        "inspect_command",
        "Look",
        "Read a soft prompt: effect, words, tokens, layers.",
        command="softprompt.cli.inspect_files.InspectCommand",
    ),
    _builtin("verbalize", "verbalize", "verbalize_command", "Look", "Search a text that says what a prompt does."),
    _builtin("similar", "similar", "similar_command", "Look", "Rank saved soft prompts by similarity to one."),
    _builtin("list", "list_show", "list_command", "Look", "List the saved soft prompts."),
    _builtin("show", "list_show", "show_command", "Look", "Show what a soft prompt is and how it was made."),
    _builtin("import", "import_prompt", "import_command", "Move", "Import a soft prompt of another tool."),
    _builtin("export", "export", "export_command", "Move", "Export a soft prompt for another engine."),
    _builtin("push", "push_pull", "push_command", "Move", "Push a soft prompt to the Hugging Face Hub."),
    _builtin("pull", "push_pull", "pull_command", "Move", "Pull a soft prompt from the Hugging Face Hub."),
    _builtin(
        "serve",
        "serve",
        "serve_command",
        "Serve",
        "Serve soft prompts under OpenAI's API.",
        other_flags=True,
        command="softprompt.cli.engine_options.EngineCommand",
    ),
    _builtin("studio", "studio", "studio_command", "Serve", "Train, compare and inspect in the browser."),
    _builtin("work", "work", "work_command", "Serve", "Train the fine-tuning jobs of a server."),
    _builtin("jobs", "jobs", "jobs_app", "Serve", "List, show, follow and cancel fine-tuning jobs."),
    _builtin("models", "models", "models_command", "Manage", "List the base models on this machine."),
    _builtin("completion", "completion", "completion_command", "Manage", "Print completion for bash, zsh or fish."),
    _builtin("doctor", "doctor", "doctor_command", "Manage", "Show versions, hardware, folders and optional extras."),
)

_VERBS = {verb.name: verb for verb in BUILT_IN_VERBS}


def register_verb(verb: Verb) -> None:
    """Add a verb. Raises ValueError if the name is taken."""
    if verb.name in _names():
        raise ValueError(f"there is a verb {verb.name!r} already")
    _VERBS[verb.name] = verb


def all_verbs() -> dict[str, Verb]:
    """Every verb by name, those of installed packages last."""
    for entry in entry_points(group=_ENTRY_POINTS):
        if entry.name in _names():
            continue
        try:
            verb = entry.load()
        except Exception as error:  # another package's mistake must not break every verb
            warnings.warn(f"the verb {entry.name} of another package cannot be loaded: {error}", stacklevel=2)
            continue
        _VERBS[entry.name] = verb
    return dict(_VERBS)


def find_verb(name: str) -> tuple[Verb | None, bool]:
    """The verb of that name, and whether the name is an old one."""
    for verbs in (lambda: _VERBS, all_verbs):  # other packages are searched for unknown names only
        for verb in verbs().values():
            if name == verb.name or name in verb.old_names:
                return verb, name != verb.name
    return None, False


def _names() -> set[str]:
    return {name for verb in _VERBS.values() for name in (verb.name, *verb.old_names)}
