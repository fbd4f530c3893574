"""The entry point: help, and what becomes of errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from softprompt.cli.main import fail, run
from softprompt.cli.verbs import BUILT_IN_VERBS, SECTIONS
from softprompt.errors import ConfigError, StoreError
from softprompt.prompts import store
from tests.support.artifacts import card, prompt
from tests.support.shell import done, softprompt

VERBS = (*(verb.name for verb in BUILT_IN_VERBS), "data check", "data preview")


def start(*args: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """A real process."""
    return subprocess.run(
        [sys.executable, *args], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=240, check=False
    )


def run_with(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    """The entry point, with these arguments."""
    monkeypatch.setattr(sys, "argv", ["softprompt", *args])
    run()


def test_an_error_is_one_message_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_with(monkeypatch, "show", "nothing")
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (1, "")
    assert err.startswith("error: ")
    assert "nothing: no such soft prompt" in err
    assert "hint:     softprompt list" in err
    assert "Traceback" not in err and err.count("no such soft prompt") == 1


def test_debug_raises_the_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StoreError, match="no such soft prompt"):
        run_with(monkeypatch, "--debug", "show", "nothing")
    assert capsys.readouterr() == ("", "")
    assert os.environ["SOFTPROMPT_DEBUG"] == "1"


def test_debug_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_DEBUG", "1")
    with pytest.raises(StoreError):
        run_with(monkeypatch, "show", "nothing")


def test_a_message_is_shown_as_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not broken at the edge of the terminal, and no markup in it."""
    monkeypatch.setenv("COLUMNS", "40")
    error = ConfigError(
        "a [bold]long[/bold] message " * 5, where="a/path/to/some/file.yaml", expected="[red]", got=":x:"
    )
    with pytest.raises(SystemExit, match="1"):
        fail(error)
    assert capsys.readouterr().err == f"error: {error.render()}\n"


def test_wrong_usage_is_exit_code_2() -> None:
    for args in (["no-such-verb"], ["show"], ["train", "--steps", "many"], ["list", "--no-such-flag"]):
        result = softprompt(*args)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "Error" in result.stderr and "Traceback" not in result.stderr


def test_help_names_every_verb() -> None:
    output = done("--help", COLUMNS="80").stdout
    options, *sections = [block.splitlines() for block in output.partition("Options:")[2].strip().split("\n\n")]
    assert "--debug" in options[0]
    assert [lines[0] for lines in sections] == [f"{section}:" for section in SECTIONS]
    for title, *lines in sections:
        wanted = [(verb.name, verb.summary) for verb in BUILT_IN_VERBS if f"{verb.section}:" == title]
        assert [tuple(line.strip().split(maxsplit=1)) for line in lines] == wanted, "one line each"


def test_a_help_line_says_what_the_verb_says() -> None:
    """A summary of the table ends like a sentence, and nothing that it lists is empty."""
    for verb in BUILT_IN_VERBS:
        assert verb.summary.endswith(".") and len(verb.summary) <= 64
        assert callable(verb.load()) or verb.name == "data"


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_a_terminal(verb: str) -> None:
    output = done(*verb.split(), "--help", COLUMNS="80").stdout
    assert output.startswith("Usage:")
    assert [line for line in output.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("module", ["softprompt", "softprompt.cli.main"])
def test_as_a_module(module: str) -> None:
    result = start("-m", module, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage:" in result.stdout and "train" in result.stdout


def test_an_old_name_is_one_line_of_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_with(monkeypatch, "distil", "--help")
    out, err = capsys.readouterr()
    assert "Distill a long text" in out
    assert err.startswith("warning: softprompt distil is now softprompt distill;") and err.count("\n") == 1
    assert " distil " not in done("--help").stdout


def test_a_wrong_verb_is_told_the_closest() -> None:
    assert "Did you mean 'train'?" in softprompt("trian").stderr


def test_a_verb_imports_its_own_module_only() -> None:
    code = "import sys\nfrom softprompt.cli.main import app\napp(['list', '--json'], standalone_mode=False)\n"
    code += "print(*(name for name in sys.modules if name.startswith('softprompt.cli.')))"
    result = start("-c", code)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.splitlines()[-1].split())
    assert "softprompt.cli.list_show" in loaded
    assert not loaded & {"softprompt.cli.train", "softprompt.cli.serve", "softprompt.cli.data"}


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`softprompt models --json | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    result = start("-m", "softprompt.cli.main", "models", "--json", stdout=writer)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


HEAVY = ("torch", "transformers", "accelerate", "matplotlib", "sqlalchemy", "fastapi", "datasets")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [("--help", "Usage: softprompt"), ("list", "embedding")],
)
def test_what_needs_no_torch_does_not_wait_for_it(
    arguments: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path))
    store.save(tmp_path / "tone", prompt("embedding"), card())
    code = (
        "import sys\nfrom softprompt.cli.main import run\n"
        f"sys.argv = ['softprompt', *{arguments.split()!r}]\n"
        "try:\n    run()\n"
        f"finally:\n    print('loaded:', *(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    result = start("-c", code)
    assert result.returncode == 0, result.stderr
    assert shown in result.stdout
    assert result.stdout.splitlines()[-1] == "loaded:"


def test_no_help_waits_for_torch() -> None:
    """That of every verb, in one process."""
    code = (
        "import sys\nfrom softprompt.cli.main import command_of\nfrom softprompt.cli.verbs import all_verbs\n"
        "for verb in all_verbs().values():\n"
        "    command_of(verb).get_help(command_of(verb).make_context(verb.name, [], resilient_parsing=True))\n"
        f"    print(verb.name, *(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    result = start("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [verb.name for verb in BUILT_IN_VERBS]


def test_the_verbs_help_needs_no_settings() -> None:
    """`softprompt --help` alone: not even pydantic and YAML, which cost more than all the rest."""
    result = start("-c", "import sys, softprompt.cli.main\nprint(*sys.modules)")
    assert {"pydantic", "yaml", "numpy"}.isdisjoint(result.stdout.split())


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        (PermissionError(13, "Permission denied", "/a/folder"), "error: /a/folder: Permission denied"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "error: out of memory"),
    ],
)
def test_what_the_machine_refuses_is_a_message(
    raised: Exception, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise raised

    monkeypatch.setattr("softprompt.prompts.store.home", refuse)
    with pytest.raises(SystemExit, match="1"):
        run_with(monkeypatch, "list")
    assert capsys.readouterr().err.startswith(shown)
    monkeypatch.setattr("softprompt.prompts.store.home", lambda: [][0])
    with pytest.raises(IndexError):
        run_with(monkeypatch, "list")
