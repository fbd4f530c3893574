"""`softprompt completion`: what a shell offers, and that it never waits for torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from softprompt.cli.setting_values import setting_values, values_of
from softprompt.cli.verbs import all_verbs
from softprompt.methods.config import MethodConfig
from softprompt.methods.registry import method_specs
from softprompt.prompts import store
from tests.support.artifacts import card, prompt
from tests.support.shell import done, softprompt

HEAVY = ("torch", "transformers", "accelerate", "numpy", "sqlalchemy", "fastapi", "matplotlib")


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Saved prompts, a router, and what is neither."""
    home = tmp_path / "prompts"
    for name in ("tone", "tone.2", "parity"):
        store.save(home / name, prompt("kv"), card())
    (home / "route").mkdir()
    (home / "route" / store.ROUTER).write_text("{}")
    for name in (".runs", "notes", "Not A Name"):
        (home / name).mkdir()
    (home / "Not A Name" / store.CARD).write_text("{}")
    return ["parity", "route", "tone", "tone.2"]


def offered(*words: str, shell: str = "bash") -> list[str]:
    return done("completion", shell, "--", *words).stdout.split()


def test_verbs(names: list[str]) -> None:
    assert offered("") == list(all_verbs())
    assert offered("ge") == offered("--debug", "ge") == ["generate"]
    assert offered("data", "") == ["check", "preview", "convert"]
    assert offered("data", "check", "--col") == ["--columns"]
    assert offered("no-such-verb", "") == offered("data", "no-such-verb", "") == []


def test_flags() -> None:
    assert offered("--d") == ["--debug"]
    assert offered("list", "--") == ["--json", "--help"]
    assert offered("data", "--") == ["--help"]
    assert offered("train", "--learning-r") == ["--learning-rate"], "flags of the settings, too"
    assert offered("chat", "tone", "--mod") == ["--model"]
    assert offered("train", "--no-ch") == ["--no-chat"]


def test_dotted_flags() -> None:
    assert offered("train", "--train.w") == ["--train.weight_decay", "--train.warmup"]
    assert offered("sweep", "--objective.be") == ["--objective.beta"]
    assert offered("distill", "--study.h") == ["--study.held_out", "--study.hard"]
    assert offered("train", "--method.h") == ["--method.hidden"], "a setting of single methods"
    assert offered("serve", "--engine-o") == ["--engine-option"], "a flag of an engine"
    assert "--train.steps" not in offered("train", "--"), "more than a hundred hide the others"
    assert offered("eval", "--train") == [], "this verb takes none"


@pytest.mark.parametrize(
    "words",
    [
        ["--train.schedule", "c"],
        ["--train.schedule", "=", "c"],  # as bash splits it
    ],
)
def test_values_of_dotted_flags(words: list[str]) -> None:
    assert offered("train", *words) == ["cosine", "constant"]


def test_a_value_after_an_equals_sign() -> None:
    assert offered("train", "--train.schedule=c") == ["--train.schedule=cosine", "--train.schedule=constant"]
    assert offered("train", "--train.schedule", "=") == ["cosine", "linear", "constant"]
    assert offered("train", "--recipe=a") == ["--recipe=auto"]
    assert offered("train", "--train.steps=") == offered("train", "--nothing=") == []


def test_values_of_settings_that_are_few() -> None:
    assert offered("train", "--method", "smo") == offered("distill", "--method.name", "smo") == ["smop"]
    assert offered("train", "--init", "d") == ["demonstrations"]
    assert offered("train", "--train.graphs", "") == ["true", "false"]
    assert offered("train", "--load-in", "4") == ["4bit"], "a choice or none"
    assert offered("sweep", "--train.lr", "") == [], "any number"


def test_the_table_of_the_methods_is_that_of_the_code() -> None:
    """`scripts/stubs` writes it."""
    shared = MethodConfig.model_fields
    own = {name: {*spec.settings.model_fields} - {*shared} for name, spec in method_specs().items()}
    assert {*values_of(MethodConfig, "name")} == {*own}
    assert {*setting_values(MethodConfig)} == {*shared}.union(*own.values())


@pytest.mark.parametrize("verb", ["chat", "eval", "export", "generate", "inspect", "prune", "push", "show", "similar"])
def test_names_of_soft_prompts(verb: str, names: list[str]) -> None:
    assert offered(verb, "") == names
    assert offered(verb, "to") == ["tone", "tone.2"]
    assert offered(verb, "--json", "pa") == ["parity"], "a flag is no argument"


def test_the_value_of_a_flag_is_no_name(names: list[str]) -> None:
    assert offered("chat", "--model", "") == []
    assert offered("chat", "--model", "base", "pa") == ["parity"]


def test_the_names_of_several(names: list[str]) -> None:
    assert offered("generate", "tone,pa") == ["tone,parity"]
    assert offered("inspect", "tone", "pa") == ["parity"], "an argument that may be repeated"
    assert offered("generate", "tone", "") == offered("show", "tone", "") == [], "any text, and nothing more"


def test_the_values_of_a_choice() -> None:
    assert offered("completion", "") == ["bash", "zsh", "fish"]


def test_no_folder_is_no_error() -> None:
    assert offered("show", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_calls_back(shell: str) -> None:
    assert f"softprompt completion {shell} -- " in done("completion", shell).stdout
    assert offered("ge", shell=shell) == ["generate"]


def test_an_unknown_shell_is_refused() -> None:
    assert softprompt("completion", "tcsh").exit_code == 2


@pytest.fixture
def shell_environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell that finds the command."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "softprompt"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m softprompt "$@"\n')
    command.chmod(0o755)
    return os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}"}


BASH_CASES = {
    "softprompt --debug show pa": "parity",
    "softprompt train --train.w": "--train.weight_decay --train.warmup",
    "softprompt train --train.schedule = l": "linear",
}


@pytest.mark.parametrize("line", BASH_CASES)
def test_bash_completes_with_the_script(line: str, names: list[str], shell_environment: dict[str, str]) -> None:
    """In a real bash, through the installed command."""
    script = f"""
        source /dev/stdin <<< "$(softprompt completion bash)"
        COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}
        _softprompt
        echo "${{COMPREPLY[@]}}"
    """
    shown = subprocess.run(["bash", "-c", script], env=shell_environment, capture_output=True, text=True, timeout=120)
    assert (shown.stdout, shown.stderr) == (f"{BASH_CASES[line]}\n", "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish on this machine")
def test_fish_completes_with_the_script(shell_environment: dict[str, str]) -> None:
    script = "softprompt completion fish | source; complete -C 'softprompt train --train.schedule=l'"
    shown = subprocess.run(["fish", "-c", script], env=shell_environment, capture_output=True, text=True, timeout=120)
    assert shown.stdout.split() == ["--train.schedule=linear"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh on this machine")
def test_zsh_completes_with_the_script(shell_environment: dict[str, str]) -> None:
    """Without its line editor: `compadd` prints what it is given."""
    script = """
        compdef() { }
        compadd() { print -l -- ${(P)2} }
        eval "$(softprompt completion zsh)"
        words=(softprompt train --train.schedule=l); CURRENT=3
        _softprompt
    """
    shown = subprocess.run(["zsh", "-fc", script], env=shell_environment, capture_output=True, text=True, timeout=120)
    assert shown.stdout.split() == ["--train.schedule=linear"]


@pytest.mark.parametrize(
    "words",
    [
        ["gen"],
        ["generate", "to"],
        ["train", "--"],
        ["train", "--train.st"],
        ["train", "--method", ""],
        ["distill", "--study.h"],
        ["serve", "--engine-"],
    ],
)
def test_nothing_heavy_is_imported(words: list[str], names: list[str]) -> None:
    """It has to answer before a key is pressed again: measured by modules, since machines differ."""
    code = (
        "import json, sys\nfrom softprompt.cli.completion import completions\n"
        f"found = completions({words!r})\n"
        f"print(json.dumps([found, [name for name in {HEAVY!r} if name in sys.modules]]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    candidates, heavy = json.loads(result.stdout)
    assert candidates and heavy == []
