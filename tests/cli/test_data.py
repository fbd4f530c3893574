"""`softprompt data check` and `preview` on a byte tokenizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from softprompt.cli.data import data_app
from softprompt.data.row_shapes.preferences import REMARK
from softprompt.errors import DataError
from tests.support.bytes_tokenizer import BytesTokenizer
from tests.support.reasoning import reasoning_tokenizer
from tests.support.rows import labelled, write_jsonl

PROMPT = r"Review: {text}\nSentiment:"


def run(*args: str | Path) -> Result:
    result = CliRunner().invoke(data_app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    if isinstance(result.exception, DataError):
        raise result.exception
    return result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", *labelled(6), *labelled(1))
    write_jsonl(tmp_path / "dev.jsonl", *labelled(2, 10))
    write_jsonl(tmp_path / "test.jsonl", *labelled(3, 4))
    return tmp_path


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the model code, which is not what is tested here."""
    tokenizers = {"tiny": BytesTokenizer(), "small": BytesTokenizer(), "endless": BytesTokenizer(None, eos=None)}
    module = ModuleType("softprompt.models.loading")
    module.__dict__["load_tokenizer"] = tokenizers.__getitem__
    module.__dict__["is_encoder_decoder"] = lambda model: False
    module.__dict__["vocabulary_size"] = {"tiny": 2000, "endless": 2000, "small": 1000}.__getitem__
    monkeypatch.setitem(sys.modules, "softprompt.models.loading", module)


def test_check_counts_what_is_there(data: Path) -> None:
    report = json.loads(run("check", data, "--template", PROMPT, "--model", "tiny", "--json").output)
    assert (report["kind"], report["ok"]) == ("label", True)
    assert report["template"] == {"kind": "text", "text": "Review: {text}\nSentiment:", "system": ""}
    assert report["duplicates"] == {"train": 1, "validation": 0, "test": 2}
    assert report["end"] == {"id": 257, "token": "</s>"}
    train = report["splits"]["train"]
    assert (train["rows"], train["labels"]) == (7, {"even": 4, "odd": 3})
    text = len("Review: row 0\nSentiment:")
    assert train["characters"] == {"min": text + 3, "median": text + 4, "p95": text + 4, "max": text + 4}
    assert train["learned_tokens"]["max"] == len(" even") - 1 + 1  # " e" is one token, and the end
    assert train["tokens"]["max"] == len(" row 0\nSentiment:") - 1 + 4 + 1
    assert report["notes"][0] == "'dev' is the validation split"
    assert len(train["sha256"]) == 64


def test_check_for_people_ends_with_ok(data: Path) -> None:
    output = run("check", data, "--model", "tiny", "--template", PROMPT).output
    assert output.rstrip().endswith("ok")
    assert "labels in train: even 4, odd 3" in output
    assert "an answer ends with '</s>' (id 257)" in output
    assert "learned tokens" in output
    assert "2 of 3 test rows ask what a training row asks already" in output
    plain = run("check", data).output
    assert "add --model" in plain
    assert "tokens" not in plain


def test_check_refuses_a_model_that_would_never_stop(data: Path) -> None:
    with pytest.raises(DataError, match="never learn to stop"):
        run("check", data, "--model", "endless")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--chat"], "--model"),
        (["--template", "{txet}"], r"did you mean \{text\}"),
        (["--template", "x"], "no field"),
    ],
)
def test_check_refuses_what_does_not_fit(data: Path, options: list[str], part: str) -> None:
    with pytest.raises(DataError, match=part):
        run("check", data, *options)


def test_preview_marks_what_is_learned(data: Path) -> None:
    output = run("preview", data / "train.jsonl", "--model", "tiny", "--template", PROMPT, "-n", "2").output
    assert "train.jsonl:2" in output
    assert "train.jsonl:3" not in output
    assert "Review: row 1\nSentiment:« o»«d»«d»«</s>»" in output


def test_preview_of_a_chat(data: Path) -> None:
    output = run("preview", data, "--model", "tiny", "-n", "1").output
    assert "<|im_start|>user\nrow 0<|im_end|>\n<|im_start|>assistant\n«e»«v»«e»«n»«<|im_end|>»" in output


def test_preview_without_a_model(data: Path) -> None:
    output = run("preview", data, "-n", "1", "--template", PROMPT).output
    assert "Review: row 0\nSentiment:« even»" in output
    assert "Add --model" in output


def test_preview_of_conversations_without_a_model(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo\nthere"}]
    path = write_jsonl(tmp_path / "a.jsonl", {"messages": turns})
    assert "user: Hi\nassistant: «Yo↵there»" in run("preview", path).output
    with pytest.raises(DataError, match="take no template"):
        run("preview", path, "--template", "{text}")


def test_preview_keeps_characters_of_several_bytes_together(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"prompt": "é", "completion": "a€"}, {"prompt": "a", "completion": "b"})
    assert "é" in (output := run("preview", path, "--model", "tiny", "--no-chat", "-n", "1").output)
    assert "« a»«€»«</s>»" in output


def test_preview_does_not_let_data_steer_the_terminal(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"prompt": "a\x1b[2J\u202e[bold]", "completion": "b\x07"})
    for options in ([], ["--model", "tiny"]):
        output = run("preview", path, *options).output
        assert "a\\x1b[2J\\u202e[bold]" in output
        assert "b" in output and not {"\x1b", "\x07", "\u202e"} & set(output)


def test_what_training_would_leave_out_or_refuse_is_noted(tmp_path: Path) -> None:
    rows = [{"prompt": "a" * (1100 if i == 1 else 9), "completion": "b", "system": "Be kind."} for i in range(20)]
    path = write_jsonl(tmp_path / "rows.jsonl", *rows)
    report = json.loads(run("check", str(path), "--json", "--model", "tiny").stdout)
    assert "the template does not use the fields system" in report["notes"]
    (note,) = (note for note in report["notes"] if "1 rows of train are longer than 1024 tokens" in note)
    assert f"--max-length {report['splits']['train']['tokens']['max']} " in note


def test_tokens_that_the_model_lacks_name_their_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "1 2" if i == 1 else "a b", "completion": "3"} for i in range(3)]
    path = write_jsonl(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(DataError, match="2 of 3 rows hold tokens that the model has no embedding of") as caught:
        run("check", path, "--model", "small", "--no-chat")
    assert {f"{path}:1", f"{path}:3"} == {str(caught.value.where), str(caught.value.got).rpartition(" ")[2]}
    assert "' b' (id 1098)" in str(caught.value.got)
    run("check", path, "--model", "tiny", "--no-chat")


ALPACA = [{"instruction": "Say", "input": str(i), "output": f"ok {i}"} for i in range(20)]


def test_check_and_preview_say_which_shape_was_recognized(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", *ALPACA)
    report = json.loads(run("check", path, "--json").stdout)
    assert (report["kind"], report["shape"]) == ("completion", "Alpaca (instruction + output)")
    assert "rows of kind completion, Alpaca (instruction + output)" in run("check", path).output
    output = run("preview", path, "--model", "tiny", "--no-chat", "-n", "1").output
    assert "Alpaca (instruction + output), prompts with completions" in output
    assert "Say\n0« o»" in output


def test_check_notes_what_is_not_learned(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "a", "rejected": "b"} for i in range(20)]
    report = json.loads(run("check", write_jsonl(tmp_path / "rows.jsonl", *rows), "--json").stdout)
    assert report["notes"][0] == f"20 of 20 rows: {REMARK}"


def test_columns_by_other_names(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", *({"q": f"{i}?", "best": ["a"]} for i in range(20)))
    with pytest.raises(DataError, match="--columns"):
        run("check", path)
    columns = ("--columns", "prompt=q,completion=best.0")
    assert json.loads(run("check", path, *columns, "--json").stdout)["kind"] == "completion"
    assert "0?« a»" in run("preview", path, *columns, "-n", "1").output


def test_convert_writes_our_own_rows(tmp_path: Path) -> None:
    path, out = write_jsonl(tmp_path / "rows.jsonl", *ALPACA), tmp_path / "new.jsonl"
    output = run("convert", path, "--out", out).output
    assert "20 rows: Alpaca (instruction + output), written as" in output
    assert json.loads(out.read_text().splitlines()[3]) == {"prompt": "Say\n3", "completion": "ok 3"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    learned = [run("preview", file, "--model", "tiny", "-n", "20").output.split("─")[-1] for file in (path, out)]
    assert learned[0] == learned[1]
    with pytest.raises(DataError, match="there already"):
        run("convert", path, "--out", out)
    run("convert", path, "--out", out, "--overwrite")
    with pytest.raises(DataError, match=r"ends in \.jsonl"):
        run("convert", path, "--out", tmp_path / "new.csv")


def test_preview_of_pieces(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text("It rains.\n\n" * 40)
    shown = run("preview", path, "--pieces", "100", "--model", "tiny", "-n", "99").output
    assert shown.count("</s>") == 1
    assert "</s>" not in run("preview", path, "--pieces", "100", "--no-learn-end", "--model", "tiny", "-n", "99").output
    assert json.loads(run("check", path, "--pieces", "100", "--json").stdout)["splits"]["train"]["rows"] >= 4


@pytest.fixture
def reasoning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models whose chat templates write thoughts, by the names of their kinds."""
    module = ModuleType("softprompt.models.loading")
    module.__dict__["load_tokenizer"] = reasoning_tokenizer
    module.__dict__["is_encoder_decoder"] = lambda model: False
    module.__dict__["vocabulary_size"] = lambda model: 300
    monkeypatch.setitem(sys.modules, "softprompt.models.loading", module)


@pytest.mark.usefixtures("reasoning")
def test_preview_and_check_of_a_reasoning_model(data: Path, tmp_path: Path) -> None:
    """Every turn that is learned, and what was done about thoughts."""
    output = run("preview", data, "--model", "r1", "-n", "1").output
    assert "<|im_start|><think>\n\n</think>\n\n«e»«v»«e»«n»" in output
    assert "note: the model's generation prompt opens a thought" in output
    words = ("Hi", "Yo", "Bye", "See")
    turns = [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate(words)]
    path = write_jsonl(tmp_path / "a.jsonl", {"messages": turns}, {"messages": turns[:2]})
    output = run("preview", path, "--model", "qwen3", "-n", "1").output
    assert "«Y»«o»«<|im_end|>»" in output and "«S»«e»«e»«<|im_end|>»" in output
    assert "1 conversations are learned as 2 rows" in output
    path = write_jsonl(tmp_path / "a.jsonl", *[{"messages": turns}] * 4)
    report = json.loads(run("check", path, "--model", "qwen3", "--json").output)
    assert any("3 conversations are learned as 6 rows" in note for note in report["notes"])


def test_check_notes_written_end_tokens(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i}", "completion": f"{i}!<|im_end|>"} for i in range(5)]
    path = write_jsonl(tmp_path / "a.jsonl", *rows)
    notes = json.loads(run("check", path, "--model", "tiny", "--json").output)["notes"]
    assert any("4 rows end with '<|im_end|>' already" in note for note in notes)
    assert "learned once" in run("check", path, "--model", "tiny").output


PAIR = {"prompt": "Name a color.", "chosen": "Blue", "rejected": "Dog"}


def test_prompts_alone_are_rows_for_rewards(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, *({"prompt": f"question {i}"} for i in range(20)))
    with pytest.raises(DataError, match="'completion' is missing") as caught:
        run("check", path)
    assert caught.value.hint == "prompts alone are for the objective grpo, which rewards generated answers"
    plain = run("check", path, "--objective", "grpo").output
    assert "a reward decides" in plain and "add --model to see tokens" in plain and plain.rstrip().endswith("ok")
    report = json.loads(run("check", path, "--objective", "grpo", "--model", "tiny", "--json").output)
    train = report["splits"]["train"]
    assert (report["objective"], train["rows"], train["characters"]["max"]) == ("grpo", 18, len("question 10"))
    assert train["tokens"]["max"] > 0 and "learned_tokens" not in train
    output = run("check", path, "--objective", "grpo", "--model", "tiny").output
    assert "an answer ends with '<|im_end|>' (id 259)\n" in output, "nothing is learned from the rows"


def test_rows_with_answers_are_previewed_as_the_objective_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, *({"prompt": "Name a color.", "completion": "Blue"} for _ in range(3)))
    for model in ([], ["--model", "tiny", "--no-chat"]):
        assert "«" in run("preview", path, *model).output.replace("«learned»", "")
        shown = run("preview", path, *model, "--objective", "grpo").output.replace("«learned»", "")
        assert "Name a color." in shown and "«" not in shown and "Blue" not in shown


def test_conversations_are_read_for_rewards(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
    assert "«" not in run("preview", path, "--objective", "grpo").output.replace("«learned»", "")


def test_rows_for_preferences_have_rejected_answers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, *[PAIR] * 12)
    assert "chosen answers are learned" not in run("check", path, "--objective", "dpo").output.replace("\n", " ")
    assert REMARK in run("check", path).output
    write_jsonl(path, *({"prompt": f"question {i}", "completion": "yes"} for i in range(12)))
    with pytest.raises(DataError, match="no rejected answer"):
        run("check", path, "--objective", "dpo")
    assert run("check", path, "--objective", "next-token").exit_code == 0
