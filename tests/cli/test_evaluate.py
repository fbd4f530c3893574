"""`softprompt eval`: three subjects on the same rows."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from softprompt.cli import progress
from softprompt.cli.evaluate import print_comparison
from softprompt.cli.progress import evaluation_progress
from softprompt.errors import ConfigError, DataError, ModelError, SoftpromptError, StoreError, WrongBaseError
from softprompt.evaluation import compare
from tests.support.rows import labelled, write_jsonl
from tests.support.shell import done, parsed, refused, same_answer

SUBJECTS = ["base", "text_prompt", "soft_prompt"]
OPTIONS = ("--dtype", "float32", "--max-new-tokens", 8)


@pytest.fixture
def text_prompts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Instruction and examples' answers of every text prompt that is made."""
    made, real = list[tuple[str, list[str]]](), compare.text_prompt

    def spy(lm: Any, template: Any, instruction: str, shots: Any = ()) -> Any:
        made.append((instruction, [shot.target for shot in shots]))
        return real(lm, template, instruction, shots)

    monkeypatch.setattr(compare, "text_prompt", spy)
    return made


def test_json(trained: Path, tmp_path: Path) -> None:
    path = same_answer(tmp_path / "rows.jsonl", "ok", 9)
    report = parsed("eval", "ok", "--data", path, *OPTIONS, "--json", "--limit", 8)
    assert [key for key in report if key in SUBJECTS] == SUBJECTS
    assert (report["name"], report["data"]) == ("ok", str(path))
    assert report["notes"] == [compare.EMPTY_TEXT_PROMPT], "no instruction, no examples: nothing to compare with"
    for formatted in SUBJECTS:
        scores = report[formatted]
        assert scores["rows"] == 8
        assert scores.keys() - {"rows", "confidence_interval"} == {"exact_match", "bleu", "rouge_l"}
        for metric, (low, high) in scores["confidence_interval"].items():
            assert low <= scores[metric] <= high
    assert [report[formatted]["exact_match"] for formatted in SUBJECTS] == [0, 0, 1]
    assert report["soft_prompt"]["confidence_interval"]["exact_match"][0] > 0.5


def test_a_table_for_people(trained: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", *labelled(8, 40))
    output = done("eval", "parity", "--data", path, *OPTIONS).stdout
    report = parsed("eval", "parity", "--data", path, *OPTIONS, "--json")
    header, *rows = output.splitlines()
    assert header.split() == ["accuracy", "accuracy", "norm"]
    for row, formatted in zip(rows, SUBJECTS, strict=False):
        low, high = report[formatted]["confidence_interval"]["accuracy"]
        assert row.startswith(formatted.replace("_", " "))
        assert f" {report[formatted]['accuracy']:.3f} {low:.2f}–{high:.2f}" in row
    assert "8 rows; 95 % confidence intervals" in output


def test_limit_takes_the_first_rows(trained: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "completion": "ok" if i < 3 else "never said"} for i in range(6)]
    path = write_jsonl(tmp_path / "rows.jsonl", *rows)
    some = parsed("eval", "ok", "--data", path, *OPTIONS, "--json", "--limit", 3)["soft_prompt"]
    every = parsed("eval", "ok", "--data", path, *OPTIONS, "--json")["soft_prompt"]
    assert (some["rows"], some["exact_match"]) == (3, 1)
    assert (every["rows"], every["exact_match"]) == (6, 0.5)


def test_a_folder_gives_test_rows_and_examples(
    trained: Path, tmp_path: Path, text_prompts: list[tuple[str, list[str]]]
) -> None:
    write_jsonl(tmp_path / "train.jsonl", *labelled(8))
    write_jsonl(tmp_path / "validation.jsonl", *labelled(2, 10))
    write_jsonl(tmp_path / "test.jsonl", *labelled(3, 20))
    for shots in (3, 0, 1):
        report = parsed("eval", "parity", "--data", tmp_path, *OPTIONS, "--json", "--shots", shots)
        assert report["soft_prompt"]["rows"] == 3
    instruction = "Classify the text. Answer with one of: even, odd."
    assert text_prompts == [(instruction, ["even", "odd", "even"]), (instruction, []), (instruction, ["even"])]


def test_a_file_gives_no_examples(trained: Path, tmp_path: Path, text_prompts: list[tuple[str, list[str]]]) -> None:
    """It says so, unless none were asked for; a file of their own gives them."""
    examples = write_jsonl(tmp_path / "examples.jsonl", *labelled(3, 5))
    path = write_jsonl(tmp_path / "rows.jsonl", *labelled(2, 40))
    args = ("eval", "parity", "--data", path, *OPTIONS)
    assert "--shots-data" in done(*args).stderr
    assert "--shots-data" not in done(*args, "--shots", 0).output
    assert "--shots-data" not in done(*args, "--shots-data", examples, "--text-prompt", "Say it.").output
    assert [shots for _, shots in text_prompts] == [[], [], ["odd", "even", "odd"]]
    assert text_prompts[-1][0] == "Say it."


@pytest.mark.parametrize(("stranger", "difference"), [("weights", "other weights"), ("qwen2", "architecture is qwen2")])
def test_a_wrong_base_model(stranger: str, difference: str, trained: Path, strangers: dict[str, Path]) -> None:
    error = refused("eval", "ok", "--data", trained / "ok.jsonl", "--model", strangers[stranger], *OPTIONS)
    assert isinstance(error, WrongBaseError)
    assert difference in str(error.got) and str(strangers[stranger]) in str(error.got)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "content", "kind", "part"),
    [
        ("ok", None, DataError, "there is no such data file"),
        ("ok", '{"prompt": "a", "completion": "b"}\n{"prompt"\n', DataError, "rows.jsonl:2: the line is not valid"),
        ("ok", "", DataError, "no rows"),
        ("nothing", '{"prompt": "a", "completion": "b"}\n', StoreError, "no such soft prompt"),
    ],
)
def test_mistakes_before_the_model_is_loaded(
    name: str, content: str | None, kind: type[SoftpromptError], part: str, trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    error = refused("eval", name, "--data", path)
    assert isinstance(error, kind)
    assert part in str(error)


def test_a_label_that_the_prompt_does_not_know(trained: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", *labelled(2), {"text": "row 9", "label": "purple"})
    error = refused("eval", "parity", "--data", path, *OPTIONS)
    assert isinstance(error, DataError)
    assert "purple" in error.what and str(error.where).endswith("rows.jsonl:3")


def test_rows_that_were_trained_on_are_not_scored(trained: Path) -> None:
    """Of the file that a prompt was trained on, the rows held out are scored, and that is said."""
    args = ("eval", "parity", "--data", trained / "parity.jsonl", *OPTIONS)
    report = parsed(*args, "--json")
    assert [report[formatted]["rows"] for formatted in SUBJECTS] == [1, 1, 1]
    note = "scored on the 1 rows held out in training; the other 7 were trained on"
    assert report["notes"] == [note]
    assert f"note: {note}" in done(*args).stderr


def test_an_empty_text_prompt_is_said_to_be_empty(trained: Path, tmp_path: Path) -> None:
    path = same_answer(tmp_path / "rows.jsonl", "ok", 2)
    args = ("eval", "ok", "--data", path, *OPTIONS)
    assert "the text prompt is empty" in done(*args).output
    assert "the text prompt is empty" not in done(*args, "--text-prompt", r"Say ok.\nOnly ok.").output


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("verb", [("eval", "ok", "--data", "ok.jsonl"), ("generate", "ok", "Hi")])
def test_a_card_never_chooses_what_is_downloaded_or_run(
    verb: tuple[str, ...], library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_answer(tmp_path / "ok.jsonl", "ok", 2)
    folder = Path(shutil.copytree(library / "prompts" / "ok", tmp_path / "prompts" / "ok"))
    error = refused(*verb, "--trust-remote-code")
    assert isinstance(error, ConfigError) and "--trust-remote-code needs --model" in error.what
    facts = json.loads((folder / "card.json").read_text())
    facts["base"]["base"] = "stranger/model"
    (folder / "card.json").write_text(json.dumps(facts))
    monkeypatch.setattr("softprompt.models.sources._check_hub", lambda name: pytest.fail("the Hub was asked"))
    error = refused(*verb)
    assert isinstance(error, ModelError) and error.got == "stranger/model"
    assert "--model stranger/model downloads it" in str(error.hint)


def test_the_table_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's, with the widest values there are, in one line a subject."""
    scores = {"rows": 90, "exact_match": 1.0, "valid_json": 1.0, "bleu": 100.0, "rouge_l": 1.0}
    intervals = {"exact_match": [0.96, 1.0], "valid_json": [0.96, 1.0], "bleu": [99.9, 100.0], "rouge_l": [0.99, 1.0]}
    results: dict[str, dict[str, object]] = {
        formatted: {**scores, "confidence_interval": intervals} for formatted in SUBJECTS
    }
    print_comparison(results, Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(len(line.rstrip()) <= 80 for line in lines)
    assert "100.0 99.9–100.0" in lines[3]


def test_several_prompts_and_their_vote(trained: Path, tmp_path: Path) -> None:
    """A row each; the majority's answers in a row of their own."""
    path = same_answer(tmp_path / "rows.jsonl", "ok", 4)
    args = ("eval", "ok,no , ok", "--data", path, *OPTIONS, "--text-prompt", "Say it.")
    report = parsed(*args, "--vote", "--json")
    assert report["names"] == ["ok", "no"] and "name" not in report and "soft_prompt" not in report
    assert [report["soft_prompts"][name]["exact_match"] for name in ("ok", "no")] == [1, 0]
    assert report["vote"]["exact_match"] == 1, "a tie goes to the first"
    assert parsed(*args, "--json").keys() == report.keys() - {"vote"}
    rows = done(*args, "--vote").stdout.splitlines()[1:6]
    assert [row.split("  ")[0] for row in rows] == ["base", "text prompt", "ok", "no", "vote"]


def test_a_vote_of_labels(trained: Path, tmp_path: Path) -> None:
    """The vote has no per-token accuracy; the table says so with an empty cell."""
    shutil.copytree(trained / "prompts", tmp_path / "prompts")
    shutil.copytree(tmp_path / "prompts" / "parity", tmp_path / "prompts" / "base")
    path = write_jsonl(tmp_path / "rows.jsonl", *labelled(6, 40))
    args = ("eval", "parity,base", "--data", path, *OPTIONS, "--vote")
    home = {"SOFTPROMPT_HOME": str(tmp_path / "prompts")}
    output = done(*args, **home).stdout
    report = parsed(*args, "--json", **home)
    assert report["vote"]["accuracy"] == report["soft_prompts"]["parity"]["accuracy"]
    assert [line.split("  ")[0] for line in output.splitlines()[1:6]] == [
        "base",
        "text prompt",
        "parity",
        "prompt base",
        "vote",
    ]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("names", "part"), [("ok", "needs several soft prompts"), ("ok,parity", "different classes"), (",", "is named")]
)
def test_a_vote_that_cannot_be_held(names: str, part: str, trained: Path, tmp_path: Path) -> None:
    path = same_answer(tmp_path / "rows.jsonl", "ok", 2)
    error = refused("eval", names, "--data", path, "--vote")
    assert isinstance(error, ConfigError) and part in str(error)


def test_progress_in_plain_lines(trained: Path, tmp_path: Path) -> None:
    path = same_answer(tmp_path / "rows.jsonl", "ok", 4)
    error = done("eval", "ok", "--data", path, *OPTIONS).stderr
    names = ["base model (1/3)", "text prompt (2/3)", "ok (3/3)"]
    lines = [line for line in error.splitlines() if line.startswith("evaluating") and not line.endswith("%")]
    assert lines == [f"evaluating {name}" for name in names]


def test_progress_on_a_terminal_and_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    with evaluation_progress(Console(file=out, force_terminal=True, width=80, _environ={}), 2) as tell:
        tell("base model", 0.25)
        tell("a\x1b", 0.5)
    assert " 50%" in out.getvalue() and "a\\x1b (2/2)" in out.getvalue()
    lines, now = io.StringIO(), [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with evaluation_progress(Console(file=lines, width=80), 2) as tell:
        for share in (0.0, 0.1, 0.2, 0.3):
            tell("base model", share)
            now[0] += 6
    assert lines.getvalue().splitlines() == ["evaluating base model (1/2)", "evaluating base model (1/2), 20%"]
