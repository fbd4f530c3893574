"""The command line as a shell runs it, but in this process, and the small files it is run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from softprompt.cli.main import app
from softprompt.errors import SoftpromptError
from tests.support.rows import write_jsonl

SHORT = ("--steps", 3, "--n-tokens", 4, "--batch-size", 4, "--dtype", "float32")
LONG = ("--steps", 80, "--n-tokens", 6, "--batch-size", 8, "--dtype", "float32", "--lr", 0.3)


def softprompt(*args: object, stdin: str = "", **environment: str) -> Result:
    """Run a command on a wide terminal, whatever comes of it."""
    environment = {"COLUMNS": "200"} | environment
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, env=environment)


def done(*args: object, stdin: str = "", **environment: str) -> Result:
    """A command that must succeed."""
    result = softprompt(*args, stdin=stdin, **environment)
    if result.exception is not None:
        raise result.exception
    assert result.exit_code == 0
    return result


def refused(*args: object, stdin: str = "", **environment: str) -> SoftpromptError:
    """The error of a command that must fail; `run` makes a message and exit code 1 of it (test_main.py)."""
    result = softprompt(*args, stdin=stdin, **environment)
    if isinstance(result.exception, SoftpromptError):
        return result.exception
    raise AssertionError(f"not refused: exit code {result.exit_code}\n{result.output}") from result.exception


def parsed(*args: object, stdin: str = "", **environment: str) -> Any:
    """What a command prints as one JSON value."""
    return json.loads(done(*args, stdin=stdin, **environment).stdout)


def json_lines(text: str) -> list[dict[str, Any]]:
    """Every line as JSON."""
    return [json.loads(line) for line in text.splitlines()]


def same_answer(path: Path, answer: str, count: int = 24) -> Path:
    """Rows of questions that all have one answer: what a prompt learns in a second."""
    return write_jsonl(path, *({"prompt": f"question {i}", "completion": answer} for i in range(count)))
