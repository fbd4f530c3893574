"""`softprompt generate`: one text, many texts, several prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from softprompt.cli import generate as verb
from softprompt.cli.main import app
from softprompt.errors import ConfigError, DataError, StoreError, WrongBaseError
from softprompt.formatting.text_prompt import text_prompt
from softprompt.inference import generate
from softprompt.inference.sampling import Sampling
from softprompt.models.loading import load_model
from softprompt.prompts import store
from tests.support.shell import done, json_lines, refused, softprompt

ASKED = ("question 3", "question 14", "question 5")
OPTIONS = ("--dtype", "float32", "--max-new-tokens", 8)


def answers(*args: object, stdin: str = "") -> list[tuple[str, str, str]]:
    """(prompt, text, answer) of every line."""
    lines = json_lines(done("generate", *args, *OPTIONS, "--json", stdin=stdin).stdout)
    assert all(line.keys() == {"prompt", "text", "answer", "finish_reason"} for line in lines)
    return [(line["prompt"], line["text"], line["answer"]) for line in lines]


def test_one_text_is_streamed(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it comes, and nothing but the answer."""
    pieces, real = list[str](), verb._write

    def write(text: str) -> None:
        pieces.append(text)
        real(text)

    monkeypatch.setattr(verb, "_write", write)
    output = done("generate", "ok", ASKED[0], *OPTIONS).stdout
    assert output == "ok\n"
    assert pieces == ["o", "k", "\n"]


def test_several_prompts_share_one_batch(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt answers every text, and each as if it were alone."""
    batches, real = list[list[int]](), generate.decode_batch

    def counted(lm: Any, prefix_kv: Any, rows: Any, prefix_ids: list[int], *args: Any, **options: Any) -> Any:
        batches.append(list(prefix_ids))
        return real(lm, prefix_kv, rows, prefix_ids, *args, **options)

    monkeypatch.setattr(generate, "decode_batch", counted)
    together = answers("ok,no", *ASKED)
    assert batches == [[0, 1] * 3]
    assert together == [(name, text, name) for text in ASKED for name in ("ok", "no")]
    assert answers("ok", *ASKED) == [row for row in together if row[0] == "ok"]


def test_for_people(trained: Path) -> None:
    lines = done("generate", "ok, no", ASKED[0], *OPTIONS).stdout.splitlines()
    assert [line.split() for line in lines] == [["ok", *ASKED[0].split()], ["ok"], ["no", *ASKED[0].split()], ["no"]]


@pytest.mark.parametrize("dash", [["-"], []])
def test_lines_from_stdin(dash: list[str], trained: Path) -> None:
    """A text a line; empty ones are skipped, and the last needs no line break."""
    stdin = f"{ASKED[0]}\n\n  \n{ASKED[1]}"
    assert answers("no", *dash, stdin=stdin) == [("no", text, "no") for text in ASKED[:2]]


def test_a_long_input_is_answered_part_by_part(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, and what is done is printed before a line that cannot be answered stops it, by name."""
    whole = answers("ok,no", *ASKED, "--temperature", "1.5")
    monkeypatch.setattr(verb, "_BATCH", 2)
    assert answers("ok,no", *ASKED, "--temperature", "1.5") == whole
    result = softprompt("generate", "ok", "-", *OPTIONS, "--json", stdin="\n".join([*ASKED[:2], "", "x" * 300]))
    assert [line["text"] for line in json_lines(result.stdout)] == list(ASKED[:2])
    assert isinstance(result.exception, DataError) and result.exception.where == "stdin:4"


def test_json(trained: Path) -> None:
    """Also of a single text, with what ended the answer."""
    output = done("generate", "ok", ASKED[0], *OPTIONS, "--json").stdout
    assert json.loads(output) == {"prompt": "ok", "text": ASKED[0], "answer": "ok", "finish_reason": "stop"}
    cut = done("generate", "ok", ASKED[0], "--dtype", "float32", "--max-new-tokens", 1, "--json").stdout
    assert json.loads(cut) == {"prompt": "ok", "text": ASKED[0], "answer": "o", "finish_reason": "length"}


def test_the_base_model_beside_it(trained: Path) -> None:
    lines = answers("ok", *ASKED[:2], "--base")
    assert [line[0] for line in lines] == ["ok", "(base)"] * 2
    assert [line[2] for line in lines if line[0] == "ok"] == ["ok", "ok"]
    assert "ok" not in [line[2] for line in lines if line[0] == "(base)"]


def test_a_text_prompt_beside_it(trained: Path, base: Path) -> None:
    """The base model with an instruction, as `eval` compares with it."""
    lines = answers("ok", ASKED[0], "--base", "--text-prompt", r"Say ok.\nOr not.")
    assert [line[0] for line in lines] == ["ok", "(base)", "(text prompt)"]
    lm = load_model(str(base), dtype="float32", device="cpu")
    formatted = text_prompt(lm, generate.load_prompts(lm, ["ok"])["ok"].template, "Say ok.\nOr not.")
    (alone,) = generate.generate(lm, {"x": formatted}, [generate.Request(ASKED[0], "x")], Sampling(8))
    assert lines[2][2] == alone.text != lines[1][2]


def test_options_of_sampling(trained: Path) -> None:
    assert answers("ok", ASKED[0], "--stop", "k") == [("ok", ASKED[0], "o")]
    hot = ("ok", ASKED[0], "--temperature", 5)
    assert answers(*hot) == answers(*hot, "--seed", 0) != answers(*hot, "--seed", 1)
    for calm in (("--top-k", 1), ("--top-p", 1e-6)):
        assert answers(*hot, *calm) == [("ok", ASKED[0], "ok")]


def test_a_text_is_taken_as_it_is(trained: Path) -> None:
    assert answers("ok", r"C:\new\table")[0][1] == r"C:\new\table"
    assert answers("ok", "-", stdin="C:\\new\r\n")[0][1] == r"C:\new"


def test_a_typed_line_break_in_a_stop_string_is_one(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stops, real = list[tuple[str, ...]](), generate.decode_batch

    def watched(lm: Any, prefix_kv: Any, rows: Any, prefix_ids: Any, sampling: Any, **options: Any) -> Any:
        stops.append(sampling.stop)
        return real(lm, prefix_kv, rows, prefix_ids, sampling, **options)

    monkeypatch.setattr(generate, "decode_batch", watched)
    answers("ok", ASKED[0], "--stop", r"\n\n")
    assert stops == [("\n\n",)]


@pytest.mark.usefixtures("no_model")
def test_text_that_is_not_utf8(trained: Path) -> None:
    result = CliRunner().invoke(app, ["generate", "ok", "-"], input=b"good\nna\xefve\n")
    assert isinstance(result.exception, DataError)
    assert (result.exception.where, result.exception.got) == ("stdin:2", "byte 0xef")
    assert isinstance(error := refused("generate", "ok", "na\udcefve"), DataError)
    assert (error.where, error.got) == ("text 1", "byte 0xef")


def test_a_path_is_a_name(library: Path) -> None:
    folder = library / "prompts" / "ok"
    assert answers(folder, ASKED[0]) == [(str(folder), ASKED[0], "ok")]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("stdin", ["", "\n \n"])
def test_nothing_to_answer(stdin: str, trained: Path) -> None:
    error = refused("generate", "ok", "-", stdin=stdin)
    assert isinstance(error, ConfigError) and error.where == "stdin"
    assert "nothing to answer" in error.what


@pytest.mark.usefixtures("no_model")
def test_mistakes_before_the_model_is_loaded(trained: Path) -> None:
    assert isinstance(refused("generate", "ok,nothing", "x"), StoreError)
    assert "temperature" in refused("generate", "ok", "x", "--temperature", -1).what


@pytest.mark.usefixtures("no_model")
def test_prompts_of_different_base_models(library: Path, tmp_path: Path) -> None:
    for name in ("ok", "no"):
        shutil.copytree(library / "prompts" / name, tmp_path / "prompts" / name)
    path = tmp_path / "prompts" / "no" / store.CARD
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"base": card["base"] | {"base": "another/model"}}))
    error = refused("generate", "ok,no", "x")
    assert isinstance(error, WrongBaseError)
    assert "no: another/model" in str(error.got) and "ok: " in str(error.got)


@pytest.mark.parametrize(("stranger", "difference"), [("weights", "other weights"), ("qwen2", "architecture is qwen2")])
def test_a_wrong_base_model(stranger: str, difference: str, trained: Path, strangers: dict[str, Path]) -> None:
    error = refused("generate", "ok", "x", "--model", strangers[stranger], "--dtype", "float32")
    assert isinstance(error, WrongBaseError)
    assert difference in str(error.got) and str(strangers[stranger]) in str(error.got)


def test_a_text_that_is_too_long(trained: Path) -> None:
    assert "context" in refused("generate", "ok", "x" * 300, "--dtype", "float32").what


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("options", [[], ["--model", "owner/name"]])
def test_no_name_at_all(options: list[str]) -> None:
    assert isinstance(refused("generate", ",", "x", *options), ConfigError)


def test_a_prompt_for_every_line(trained: Path) -> None:
    """One batch, each row with its own prompt."""
    lines = [json.dumps({"prompt": name, "text": text}) for name, text in zip(("ok", "no", "ok"), ASKED, strict=True)]
    wanted = [("ok", ASKED[0], "ok"), ("no", ASKED[1], "no"), ("ok", ASKED[2], "ok")]
    assert answers("ok,no", "--jsonl", stdin="\n".join(lines)) == wanted


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("line", ["Hi", "[]", '{"prompt": "other", "text": "Hi"}', '{"prompt": "ok", "text": 3}'])
def test_a_line_that_is_no_request(line: str, trained: Path) -> None:
    error = refused("generate", "ok,no", "--jsonl", stdin=f'{{"prompt": "ok", "text": "Hi"}}\n{line}\n')
    assert isinstance(error, DataError) and error.where == "stdin:2"
