"""Rows of every kind through `train` and `eval`, and what is said of rows that cannot be learned as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import softprompt
from softprompt.errors import CheckpointError, ConfigError, DataError
from softprompt.evaluation.held_out import held_out_rows
from tests.support.rows import labelled, write_jsonl
from tests.support.shell import SHORT, done, parsed, refused
from tests.support.tiny import tiny_lm, tiny_model, tiny_tokenizer

N = range(20)
FILES: dict[str, tuple[str, str, str]] = {
    "alpaca": ("a.json", json.dumps([{"instruction": "Say", "input": "", "output": f"{i}"} for i in N]), "exact_match"),
    "choices": (
        "a.jsonl",
        "".join(json.dumps({"question": f"{i}?", "choices": ["no", f"{i}"], "answer": 1}) + "\n" for i in N),
        "accuracy",
    ),
    "labels": ("a.json", json.dumps({"data": [{"text": f"{i}", "labels": ["x"] * (i % 2)} for i in N]}), "f1"),
    "truth": ("a.json", "\n".join(json.dumps({"sentence": f"row {i}", "label": i % 2 > 0}) for i in N), "accuracy"),
    "semicolons": ("a.csv", "text;label\n" + "".join(f"row, {i};{'ab'[i % 2]}\n" for i in N), "accuracy"),
    "share_gpt": (
        "a.jsonl",
        "".join(
            json.dumps({"conversations": [{"from": "human", "value": f"{i}"}, {"from": "gpt", "value": "ok"}]}) + "\n"
            for i in N
        ),
        "exact_match",
    ),
    "novel": ("a.txt", "".join(f"It rains on page {i}.\n\n" for i in range(400)), "perplexity"),
}
SMALL = ("--n-tokens", 3, "--batch-size", 4, "--steps", 2, "--dtype", "float32")


@pytest.mark.parametrize("kind", FILES)
def test_train_and_eval_take_it(kind: str, base: Path, tmp_path: Path) -> None:
    name, content, metric = FILES[kind]
    path = tmp_path / name
    path.write_text(content)
    more = ("--pieces", 100) if kind == "novel" else ()
    done("train", "--model", base, "--data", path, "--name", "tone", *SMALL, *more)
    found = parsed(
        "eval",
        "tone",
        "--model",
        base,
        "--data",
        path,
        "--dtype",
        "float32",
        "--max-new-tokens",
        4,
        *("--shots", 1),
        "--json",
    )
    assert metric in found["soft_prompt"], found
    rows = json.loads((tmp_path / "prompts" / "tone" / "card.json").read_text())["data"]["validation_rows"]
    assert found["soft_prompt"]["rows"] == rows, "those that training held out, read as training read them"
    assert "held out in training" in " ".join(found["notes"])


def test_columns_are_renamed_and_remembered(base: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", *({"q": f"question {i}", "a": {"best": "ok"}} for i in N))
    assert "--columns" in str(refused("train", "--model", base, "--data", path, "--name", "tone", *SMALL).hint)
    done("train", "--model", base, "--data", path, "--name", "tone", *SMALL, "--columns", "prompt=q,completion=a.best")
    command = ("eval", "tone", "--model", base, "--dtype", "float32", "--max-new-tokens", 2, "--json")
    found = parsed(*command, "--data", path)
    assert found["soft_prompt"]["rows"] == 2
    other = write_jsonl(tmp_path / "b.jsonl", {"prompt": "question", "completion": "ok"})
    assert parsed(*command, "--data", other)["soft_prompt"]["rows"] == 1
    odd = write_jsonl(tmp_path / "c.jsonl", {"x": "question", "y": "ok"})
    assert parsed(*command, "--data", odd, "--columns", "prompt=x,completion=y")["soft_prompt"]["rows"] == 1


def test_rows_in_memory(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "completion": "ok"} for i in N]
    settings: dict[str, Any] = {"model": str(base), "name": "tone", "method.n_tokens": 3, "train.steps": 2}
    prepared = softprompt.prepare(softprompt.resolve(settings | {"dtype": "float32"}), data=rows)
    lm = softprompt.load_model(str(base), dtype="float32")
    result = softprompt.fit(prepared, lm)
    assert (result.card.data["train_rows"], result.card.data["validation_rows"]) == (18, 2)
    scored = softprompt.compare(lm, "tone", softprompt.load_rows(rows), sampling=softprompt.Sampling(2))
    assert scored.soft_prompt.rows == 2, "the card is looked at"
    assert "the other 18 were trained on" in scored.notes[0]
    with pytest.raises(ConfigError, match="data is not given"):
        softprompt.prepare(softprompt.resolve(settings | {"name": "other"}))


def test_compare_scores_training_rows_only_if_told_to(base: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", *labelled(20))
    done("train", "--model", base, "--data", path, "--name", "tone", *SMALL)
    lm = softprompt.load_model(str(base), dtype="float32")
    rows = held_out_rows(str(path)).rows
    assert len(rows) == 20
    assert softprompt.compare(lm, "tone", rows).soft_prompt.rows == 2
    assert softprompt.compare(lm, "tone", rows, training_rows=True).soft_prompt.rows == 20


def test_rows_beyond_the_context_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    """The tiny model has 256 positions; --max-length allows 1,024 tokens."""
    path = write_jsonl(
        tmp_path / "a.jsonl", *({"prompt": "x" * (300 if i % 5 == 0 else 9), "completion": "ok"} for i in N)
    )
    command = ("train", "--model", base, "--data", path, "--no-chat", *SMALL, "--method", "prompt-tuning")
    error = refused(*command, "--name", "refused")
    assert isinstance(error, DataError)
    number = str(error.hint).split()[1]
    assert str(error.hint).startswith(f"--max-length {number} --drop-long")
    done(*command, "--name", "hinted", "--max-length", number, "--drop-long")
    output = done(*command, "--name", "dropped", "--drop-long").stdout
    assert f"note: 4 rows of over {number} tokens left out" in output
    fits = write_jsonl(tmp_path / "b.jsonl", *({"prompt": "x" * (int(number) - 4), "completion": "ok"} for i in N))
    assert "left out" not in done(*command[:4], fits, *command[5:], "--name", "fits", "--drop-long").stdout
    error = refused("train", "--model", base, "--data", path, "--name", "long", "--no-chat", *SMALL, "--max-length", 99)
    assert error.hint == "--drop-long leaves them out", "no length would keep them all"


def test_tokens_that_the_model_lacks_are_found_before_training(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny_model("llama").save_pretrained(folder)
    tokenizer: Any = tiny_tokenizer()
    known = tiny_lm("llama").geometry.vocab
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(known - len(tokenizer) + 2)])
    tokenizer.save_pretrained(folder)
    strange = f"<extra_{known - len(tiny_tokenizer()) + 1}>"
    rows = [{"prompt": f"question {i}" + (strange if i in (3, 7) else ""), "completion": "ok"} for i in N]
    path = write_jsonl(tmp_path / "a.jsonl", *rows)
    errors = [
        refused("data", "check", path, "--model", folder),
        refused("train", "--model", folder, "--data", path, "--name", "tone", *SMALL),
    ]
    for error in errors:
        assert isinstance(error, DataError)
        assert "no embedding of" in error.what and str(known) in str(error.expected)
        assert strange in str(error.got)
        assert "a.jsonl:4" in str(error) or "a.jsonl:8" in str(error)
    kept = write_jsonl(tmp_path / "b.jsonl", *(row for row in rows if strange not in row["prompt"]))
    done("train", "--model", folder, "--data", kept, "--name", "tone", *SMALL)
    error = refused("eval", "tone", "--model", folder, "--data", path, "--shots", 0, "--dtype", "float32")
    assert "no embedding of" in error.what


def test_epochs_are_passes_over_the_rows(base: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", *labelled(10))
    write_jsonl(tmp_path / "validation.jsonl", *labelled(4, 20))
    options = ("--n-tokens", 3, "--batch-size", 4, "--dtype", "float32")
    output = done("train", "--model", base, "--data", tmp_path, "--name", "tone", *options, "--epochs", 2).stdout
    assert "ended by    steps after 5 steps" in output
    output = done(
        "train", "--model", base, "--data", tmp_path, "--name", "two", *options, "--epochs", 2, "--steps", 3
    ).stdout
    assert "after 3 steps" in output


def test_a_refused_resume_names_the_settings(base: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", *labelled(20))
    command = ("train", "--model", base, "--data", path, "--name", "tone", *SHORT, "--train.save-every", 1)
    run = tmp_path / "prompts" / ".runs" / "tone"
    stopped = _stopped(command, run)
    error = refused(*stopped, "--resume", "--lr", 0.5, "--train.clip", 2)
    assert isinstance(error, CheckpointError)
    assert "train.lr" in str(error.expected) and "train.lr 0.5" in str(error.got)
    assert "train.clip 1.0" in str(error.expected) and "train.clip 2.0" in str(error.got)
    assert "warmup" not in str(error)
    path.write_text(path.read_text().replace("row 3", "row three"))
    error = refused(*stopped, "--resume")
    assert "same settings, but with other rows" in error.what


def _stopped(command: tuple[object, ...], run: Path) -> tuple[object, ...]:
    """The command, after a run of it that was stopped behind its first step."""
    from softprompt.training import loop

    original = loop._Loop.one_step

    def stop_after_one(self: Any, trials: Any) -> None:
        if self.step == 1:
            raise KeyboardInterrupt
        original(self, trials)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Loop, "one_step", stop_after_one)
        from tests.support.shell import softprompt as shell

        shell(*command)
    assert list(run.glob("checkpoint-*"))
    return command
