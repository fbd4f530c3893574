"""`softprompt completion`: a shell's completion script, and the words that it asks for.

The script calls `softprompt completion SHELL -- WORD…` with the words typed so far. Verbs come from the table, flags
from the verb's own module, dotted flags (--train.steps) from its settings class, names of soft prompts from their
folder. No module of a verb imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.verbs import all_verbs, find_verb

if TYPE_CHECKING:
    from typer._click import Command

_GLOBAL_FLAGS = ("--debug", "--help")
_BASH = """\
_softprompt() {
    local IFS=$'\\n'
    COMPREPLY=($(softprompt completion bash -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _softprompt softprompt
"""
_ZSH = """\
#compdef softprompt
_softprompt() {
    local -a candidates
    candidates=("${(@f)$(softprompt completion zsh -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${candidates[1]}" ]]; then compadd -a candidates; else _files; fi
}
compdef _softprompt softprompt
"""
_FISH = """\
function __softprompt_candidates
    set -l typed (commandline -opc)
    set -l word (commandline -ct)
    set -l candidates (softprompt completion fish -- $typed[2..-1] "$word" 2>/dev/null)
    if test (count $candidates) -gt 0
        printf '%s\\n' $candidates
    else
        __fish_complete_path "$word"
    end
end
complete --command softprompt --no-files --arguments '(__softprompt_candidates)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


class Shell(StrEnum):
    """A shell whose completion is known."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion_command(
    shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.")],
    words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
) -> None:
    """Print shell completion of verbs, flags and the names of saved soft prompts.

    bash: echo 'source <(softprompt completion bash)' >> ~/.bashrc

    zsh: echo 'source <(softprompt completion zsh)' >> ~/.zshrc (after compinit)

    fish: softprompt completion fish > ~/.config/fish/completions/softprompt.fish
    """
    typer.echo("\n".join(completions(words)) if words else _SCRIPTS[shell].rstrip())


def completions(words: Sequence[str]) -> list[str]:
    """What the last of the words can become, given those before it; nothing where any text is allowed."""
    *typed, last = _without_signs(words)
    while typed and typed[0] in _GLOBAL_FLAGS:
        typed.pop(0)
    flag, _, value = last.partition("=")
    if "=" in last and flag.startswith("--"):
        return [f"{flag}={candidate}" for candidate in completions([*typed, flag, value])]
    return [candidate for candidate in _candidates(typed, last) if candidate.startswith(last)]


def _without_signs(words: Sequence[str]) -> list[str]:
    """The words without the "=" that bash makes a word of its own; after one, the last word is yet empty."""
    return [*(word for word in words[:-1] if word != "="), "" if words[-1] == "=" else words[-1]]


def _candidates(typed: Sequence[str], last: str) -> Sequence[str]:
    from softprompt.cli.main import command_of

    if not typed:
        return _GLOBAL_FLAGS if last.startswith("-") else [*all_verbs()]
    verb, _ = find_verb(typed[0])
    if verb is None:
        return ()
    command, rest = command_of(verb), typed[1:]
    own_verbs: dict[str, Command] = getattr(command, "commands", {})
    if own_verbs:
        if not rest:
            return ["--help"] if last.startswith("-") else [*own_verbs]
        command, rest = own_verbs.get(rest[0]), rest[1:]
    return () if command is None else list(_of_command(command, rest, last))


def _of_command(command: Command, typed: Sequence[str], last: str) -> Iterator[str]:
    """Flags after a dash, otherwise the values of the argument or flag whose turn it is."""
    options = {
        spelling: parameter
        for parameter in command.params
        for spelling in (*parameter.opts, *parameter.secondary_opts)
        if spelling.startswith("-")
    }
    others = _other_flags(command)
    takes_value = {spelling for spelling, option in options.items() if not getattr(option, "is_flag", False)} | {
        *others
    }
    if typed and typed[-1] in others:
        yield from others[typed[-1]]
        return
    if typed and typed[-1] in takes_value:
        due = options[typed[-1]]
    elif last.startswith("-"):
        # More than a hundred settings: not before a letter is typed.
        yield from (*options, "--help", *(others if len(last) > 2 else ()))
        return
    else:
        arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        pairs = zip(("", *typed), typed, strict=False)
        place = sum(not word.startswith("-") and before not in takes_value for before, word in pairs)
        if place >= len(arguments) and not (arguments and arguments[-1].nargs == -1):
            return
        due = arguments[min(place, len(arguments) - 1)]
    context = command.make_context(command.name, [], resilient_parsing=True)
    yield from (item.value for item in due.shell_complete(context, last))


def _other_flags(command: Command) -> dict[str, tuple[str, ...]]:
    """Flags that its function does not name, with their values: of an engine, or of settings in sections."""
    if not command.context_settings.get("allow_extra_args"):
        return {}
    from softprompt.cli.engine_options import EngineCommand
    from softprompt.cli.setting_values import setting_values

    if isinstance(command, EngineCommand):
        return command.other_flags()
    kind = getattr(command.callback, "settings_class", None)
    if kind is None:
        return {}
    return {f"--{setting}": values for setting, values in setting_values(kind).items() if "." in setting}
