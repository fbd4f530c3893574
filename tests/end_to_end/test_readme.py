"""The README does what it says: its Python runs, its commands and flags exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import softprompt
from softprompt.cli.engine_options import engine_named, parse_engine_options
from softprompt.cli.main import app
from softprompt.cli.options import setting_options
from softprompt.cli.overrides import parse_overrides
from softprompt.cli.train import train_flags
from softprompt.distillation.run import DistillationResult
from softprompt.methods.registry import method_specs
from softprompt.models import loading
from softprompt.models.sources import Source, find_source
from softprompt.prompts import store
from softprompt.training.config import Config, resolve
from softprompt.training.run import FitResult
from tests.support.rows import write_jsonl
from tests.support.saved import save_tiny

ROOT = Path(__file__).parents[2]
NAME = "smollm2-135m"
EXAMPLES = tuple(sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").rglob("README.md")))
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", *EXAMPLES)
EXTENDING = ROOT / "docs" / "guides" / "extending.md"  # commands of toys, which tests/extending runs


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pages() -> list[str]:
    """Every page for readers, from the root."""
    return [*PAGES, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if path != EXTENDING)]


def blocks(name: str, *languages: str) -> list[str]:
    """The code blocks of a page in these languages ("" has none)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def spans(name: str) -> list[str]:
    """Text in single backticks, outside of code blocks."""
    prose = re.sub(r"^```.*?^```$", "", page(name), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def python_snippets() -> dict[str, str]:
    (readme,) = blocks("README.md", "python")
    docstring = str(softprompt.__doc__)
    return {"README.md": readme, "softprompt.__doc__": docstring[docstring.index("import softprompt") :]}


@pytest.fixture
def tiny_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The built-in model is a tiny one, the example's data are few rows, prompts go to ./prompts."""
    folder = save_tiny(tmp_path / "model")
    for data in (tmp_path / "examples" / "helpdesk", tmp_path / "helpdesk"):
        data.mkdir(parents=True)
        for split in ("train", "validation", "test"):
            write_jsonl(data / f"{split}.jsonl", *({"prompt": f"{split} {i}", "completion": "{}"} for i in range(6)))
    monkeypatch.setattr(
        loading, "find_source", lambda name: Source(str(folder), "built in") if name == NAME else find_source(name)
    )
    monkeypatch.delenv("SOFTPROMPT_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("where", python_snippets())
def test_the_python_of_the_readme_runs(where: str, tiny_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a model to an answer, with two steps for its four minutes."""
    code = python_snippets()[where]
    assert code.count('"train.minutes": 4') == 1
    scope: dict[str, Any] = {}
    exec(code.replace('"train.minutes": 4', '"train.steps": 2'), scope)
    result = scope["result"]
    assert isinstance(result, FitResult)
    assert result.result.step == 2
    assert result.folder == Path("prompts/helpdesk")
    card = store.load_card(tiny_world / "prompts" / "helpdesk")
    assert (card.geometry.base, card.geometry.hidden) == (NAME, 32)
    printed = capsys.readouterr().out
    prompts = softprompt.load_prompts(scope["lm"], ["helpdesk"])
    request = softprompt.Request("Where is my parcel?", "helpdesk")
    answers = softprompt.generate(scope["lm"], prompts, [request], softprompt.Sampling())
    assert printed == f"{answers[0].text if where == 'README.md' else answers}\n"


def test_the_python_of_the_guide_to_distillation_runs(tiny_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a text to a fidelity report, with few queries and two steps."""
    (code,) = blocks("docs/guides/distill.md", "python")
    assert code.count('"method.n_tokens": 32') == 1
    few = '"study.queries": 8, "study.held_out": 4, "study.answer_tokens": 4, "train.steps": 2, "fit_steps": 2'
    (tiny_world / "policy.md").write_text("Answer in one sentence.", encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(code.replace('"method.n_tokens": 32', f'"method.n_tokens": 4, {few}'), scope)
    result = scope["result"]
    assert isinstance(result, DistillationResult)
    assert result.folder == Path("prompts/policy")
    assert store.load_card(tiny_world / "prompts" / "policy").form == "kv"
    assert result.fidelity is not None
    assert capsys.readouterr().out == f"{result.folder} {result.fidelity.to_dict()}\n"


COMMANDS = typer.main.get_command(app)


def parse(line: str) -> None:
    """Let the verb's own parser read a command line, without running it; anything unknown raises."""
    words = shlex.split(line, comments=True)
    assert words.pop(0) == "softprompt"
    words = words[: words.index("<")] if "<" in words else words
    command: Any = COMMANDS
    path = ["softprompt"]
    while hasattr(command, "get_command"):
        verb = command.get_command(None, words[0]) if words else None
        assert verb is not None, f"no such verb: {line}"
        path.append(words.pop(0))
        command = verb
    context = command.make_context(" ".join(path), list(words))
    if path == ["softprompt", "train"]:
        flags = {option.setting: context.params[option.parameter] for option in setting_options(Config)}
        resolve(train_flags(flags, context.params["config"], context.args)[0])
    elif path == ["softprompt", "serve"]:
        parse_engine_options(engine_named(context.params["engine"]), context.args)
    else:
        assert not context.args


def names_a_verb(line: str) -> bool:
    """Whether it is a verb without any arguments, as prose names it: `softprompt data check`."""
    command: Any = COMMANDS
    for word in line.split()[1:]:
        command = command.get_command(None, word) if hasattr(command, "get_command") else None
    return command is not None and command is not COMMANDS


def command_lines() -> Iterator[tuple[str, str]]:
    """Command lines in blocks and in the text; `softprompt list · show tone` is two."""
    for name in pages():
        code = "\n".join(blocks(name, "", "sh", "bash", "console"))
        lines = re.sub(r"\\\n\s*", "", code).splitlines()  # a line that goes on is one
        for line in [*lines, *spans(name)]:
            bare = line.strip().removeprefix("$ ")
            if bare.startswith("softprompt "):
                for part in bare.removeprefix("softprompt ").split(" · "):
                    yield name, f"softprompt {part}"


def test_there_are_command_lines() -> None:
    verbs = {line.split()[1] for name, line in command_lines() if name == "README.md"}
    assert verbs >= {"demo", "train", "eval", "generate", "inspect", "list"}


@pytest.mark.parametrize(("name", "line"), sorted(set(command_lines())))
def test_every_command_exists(name: str, line: str) -> None:
    if not names_a_verb(line):
        parse(line)


@pytest.mark.parametrize(
    "line",
    [
        "softprompt trian",
        "softprompt eval tone --data x --fast",
        "softprompt train c.yaml --train.rl 1",
        "softprompt eval",
    ],
)
def test_a_command_that_does_not_exist_is_found_out(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|unknown|missing"):
        parse(line)


@pytest.mark.parametrize("flag", [span for span in spans("README.md") if span.startswith("--")])
def test_flags_in_the_text_are_those_of_train(flag: str) -> None:
    if "." in flag.split()[0]:
        assert resolve(dict(parse_overrides(shlex.split(flag))[0])) != resolve({})
    else:
        value = "" if " " in flag or flag in {"--resume", "--overwrite"} else " x"
        parse(f"softprompt train {flag}{value}")


@pytest.mark.parametrize("setting", [span for span in spans("README.md") if span.startswith("SOFTPROMPT__")])
def test_environment_variables_in_the_text_are_settings(setting: str) -> None:
    name, _, value = setting.partition("=")
    assert resolve({}, environment={name: value}) != resolve({})


def test_make_targets_exist() -> None:
    asked = {
        word
        for name in pages()
        for word in re.findall(r"\bmake ([a-z]+)\s+#|`make ([a-z]+)`", page(name))
        for word in word
    }
    targets = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    assert asked - {""} >= {"demo", "test", "check"}
    assert asked - {""} <= targets


def links(name: str) -> list[str]:
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", page(name))
    return [link.partition("#")[0] for link in found if "://" not in link and not link.startswith(("#", "mailto:"))]


def test_there_are_links() -> None:
    assert len(links("README.md")) >= 5


@pytest.mark.parametrize("name", pages())
def test_every_link_leads_somewhere(name: str) -> None:
    for link in links(name):
        target = ((ROOT / name).parent / link).resolve()
        assert target.is_relative_to(ROOT)
        assert target.exists(), f"{name} links to {link}"


def test_its_table_has_every_method() -> None:
    table = page("README.md").partition("## Methods\n")[2].partition("\n## ")[0]
    listed = [name for row in table.splitlines() if row.startswith("| ") for name in re.findall(r"`([\w-]+)`", row)]
    assert sorted(set(listed) - {"auto"}) == sorted(method_specs())
    rows = [row for row in page("docs/guides/methods.md").splitlines() if row.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])]
    assert set(named) >= set(method_specs())


def test_it_fits_a_few_screens() -> None:
    assert len(page("README.md").splitlines()) <= 120
