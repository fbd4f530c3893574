"""`softprompt completion`: what a shell offers, and that it never waits for torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from softprompt.cli.verbs import all_verbs
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


def test_bash_completes_with_the_script(names: list[str], tmp_path: Path) -> None:
    """In a real bash, through the installed command."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "softprompt"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m softprompt "$@"\n')
    command.chmod(0o755)
    script = """
        source /dev/stdin <<< "$(softprompt completion bash)"
        COMP_WORDS=(softprompt --debug show pa); COMP_CWORD=3
        _softprompt
        echo "${COMPREPLY[@]}"
    """
    environment = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}"}
    shown = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert (shown.stdout, shown.stderr) == ("parity\n", "")


@pytest.mark.parametrize("words", [["gen"], ["generate", "to"], ["train", "--"], ["distill", "--"]])
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
