"""`softprompt train`: a run from the first flag to the folder it leaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from softprompt.cli import train as verb
from softprompt.cli.progress import progress_for
from softprompt.errors import CheckpointError, DataError, ModelError, StoreError, TrainError
from softprompt.prompts import store
from softprompt.training import artifacts, prepare, run, speed
from softprompt.training.config import MethodConfig, TrainConfig
from softprompt.training.events import Event
from softprompt.training.pace import Pace
from tests.support.missing import uninstall
from tests.support.rows import labelled, write_jsonl
from tests.support.shell import SHORT, done, json_lines, parsed, refused, same_answer, softprompt

ARTIFACT = {store.TENSORS, store.CARD, store.README, artifacts.CURVE}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", *labelled(12))


@pytest.fixture
def command(base: Path, rows: Path) -> tuple[object, ...]:
    """A run of three steps, without its name."""
    return ("train", "--model", base, "--data", rows, *SHORT)


def tensors(name: str) -> bytes:
    return (store.home() / name / store.TENSORS).read_bytes()


def checkpoints(name: str) -> list[str]:
    return sorted(path.name for path in (store.home() / prepare.RUNS / name).glob("checkpoint-*"))


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Send this process a signal when so many steps are done."""
    real = verb.progress_for

    @contextlib.contextmanager
    def stopping(*args: Any, **options: Any) -> Iterator[Callable[[Event], None]]:
        with real(*args, **options) as report:

            def both(event: Event) -> None:
                report(event)
                if (event.kind, event.step) == ("step", step):
                    os.kill(os.getpid(), number)

            yield both

    monkeypatch.setattr(verb, "progress_for", stopping)


# --- a run ---


def test_three_flags_make_an_artifact(base: Path, rows: Path) -> None:
    """Model, data and a name; the steps only keep the test short."""
    often = {"SOFTPROMPT__TRAIN__SAVE_EVERY": "1"}
    output = done("train", "--model", base, "--data", rows, "--name", "tone", "--steps", 3, **often).stdout
    folder = store.home() / "tone"
    assert {path.name for path in folder.iterdir()} == ARTIFACT
    prompt, card = store.load(folder)
    assert (card.name, card.labels, card.metrics["steps"]) == ("tone", ("even", "odd"), 3)
    assert (prompt.form, prompt.n_tokens) == ("kv", MethodConfig().n_tokens)
    assert card.geometry.base == str(base)
    assert card.data["train_rows"] == 11 and card.data["validation_rows"] == 1
    assert (folder / artifacts.CURVE).read_bytes().startswith(b"\x89PNG")
    assert "softprompt generate tone" in (folder / store.README).read_text()
    run = store.home() / prepare.RUNS / "tone"
    kinds = [line["event"] for line in json_lines((run / "metrics.jsonl").read_text())]
    assert kinds.count("checkpoint") == 3, "there were some"
    assert {path.name for path in run.iterdir()} == {"metrics.jsonl", "config.yaml", "starts"}
    for part in (f"saved       {folder}", f"curve       {folder / artifacts.CURVE}", "ended by    steps after 3 steps"):
        assert part in output
    assert f"next        softprompt eval tone --data {rows}" in output
    assert 'softprompt generate tone "your text"' in output
    assert "split off" in output, "notes about the data are shown"


def test_without_matplotlib_no_curve_is_promised(command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall("matplotlib", monkeypatch)
    with pytest.warns(UserWarning, match="no plots"):
        output = done(*command, "--name", "tone", "--steps", 1).output
    assert "saved  " in output and "curve  " not in output


def test_what_is_printed_can_be_done_next(command: tuple[object, ...]) -> None:
    output = done(*command, "--name", "tone").stdout
    evaluation = output.partition("next        softprompt ")[2].splitlines()[0]
    report = parsed(*evaluation.split(), "--dtype", "float32", "--json")
    assert report["soft_prompt"]["rows"] == 1, "eleven of the twelve rows were trained on"


def test_plain_progress(command: tuple[object, ...]) -> None:
    """Every tenth step, and every validation."""
    output = done(*command, "--name", "tone", "--steps", 21).stdout
    steps = [int(line.split()[1]) for line in output.splitlines() if line.startswith("step") and "lr" in line]
    assert steps == [10, 20]
    assert re.search(r"^step 0  validation loss \d+\.\d{4} of 1 row$", output, re.MULTILINE)
    assert "had time for" not in output


def test_a_run_that_had_no_time_for_its_rows_says_so(command: tuple[object, ...]) -> None:
    output = done(*command, "--name", "tone", "--minutes", "1e-5", "--batch-size", 2).stdout
    assert "ended by    minutes after" in output
    assert re.search(r"note: it had time for \d+% of the training rows; with more --minutes", output)


def test_a_bar_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={})
    with progress_for(TrainConfig(steps=4), 10, console, as_json=False) as report:
        report(Event("validation", 0, {"validation_loss": 3.25, "best": 3.25}))
        report(Event("step", 2, {"loss": 1.5, "lr": 0.1, "progress": 0.5, "elapsed": 1.0}))
        report(Event("end", 2, {"elapsed": 1.0, "validation_loss": 1.0}))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "step 2/4 loss 1.500 val 3.250" in shown
    assert "100%" in shown


def test_json_lines(command: tuple[object, ...]) -> None:
    """Stdout is for machines then, and people read stderr."""
    result = done(*command, "--name", "tone", "--json")
    lines = json_lines(result.stdout)
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3]
    assert {line["event"] for line in lines} == {"start", "step", "validation", "end", "saved"}
    last, folder = lines[-1], store.home() / "tone"
    assert (last["event"], last["folder"], last["step"]) == ("saved", str(folder), 3)
    prompt, card = store.load(folder)
    assert last["bytes"] == sum(t.numel() * t.element_size() for t in prompt.tensors().values())
    assert last["validation_loss"] == card.metrics["validation_loss"]
    assert "base model" in result.stderr and "split off" in result.stderr


def test_quiet(command: tuple[object, ...]) -> None:
    result = done(*command, "--name", "tone", "--steps", 10, "--quiet")
    assert result.stderr == ""
    assert result.stdout.startswith("saved ")
    assert not {"step", "base", "method", "data", "note:"} & {line.split()[0] for line in result.stdout.splitlines()}


# --- what is there already ---


def test_a_name_that_is_taken(command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is replaced or even loaded without --overwrite."""
    done(*command, "--name", "tone")
    before = tensors("tone")
    with monkeypatch.context() as patch:
        patch.setattr("softprompt.models.loading._load_model", lambda *_: pytest.fail("a base model was loaded"))
        error = refused(*command, "--name", "tone")
    assert isinstance(error, StoreError)
    assert error.where == store.home() / "tone" and "--overwrite" in str(error.hint)
    assert tensors("tone") == before
    done(*command, "--name", "tone", "--overwrite", "--seed", 1)
    assert tensors("tone") != before
    assert {path.name for path in (store.home() / "tone").iterdir()} == ARTIFACT


def test_nothing_to_resume(command: tuple[object, ...]) -> None:
    error = refused(*command, "--name", "tone", "--resume")
    assert isinstance(error, CheckpointError)
    assert "nothing to resume" in error.what and "without --resume" in str(error.hint)
    assert not (store.home() / "tone").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_an_interrupted_run_goes_on(
    number: signal.Signals, code: int, command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bytes of a run that nobody interrupted."""
    six = (*command, "--steps", 6)
    done(*six, "--name", "straight")
    with monkeypatch.context() as patch:
        stop_at(patch, 3, number)
        stopped = softprompt(*six, "--name", "stopped")
    assert stopped.exit_code == code
    assert f"stopped by {number.name} after step 3" in stopped.stderr
    assert "--resume" in stopped.stderr
    assert "Traceback" not in stopped.output and "saved       " not in stopped.output
    assert checkpoints("stopped") == ["checkpoint-000003"] and not (store.home() / "stopped").exists()

    error = refused(*six, "--name", "stopped")
    assert isinstance(error, StoreError)
    assert "unfinished run" in error.what and "--resume" in str(error.hint)
    other = refused(*six, "--name", "stopped", "--resume", "--lr", 0.5)
    assert isinstance(other, CheckpointError) and "other settings" in other.what

    output = done(*six, "--name", "stopped", "--resume").stdout
    assert "ended by    steps after 6 steps" in output
    assert tensors("stopped") == tensors("straight")
    assert checkpoints("stopped") == []
    log = json_lines((store.home() / prepare.RUNS / "stopped" / "metrics.jsonl").read_text())
    assert [line["step"] for line in log if line["event"] == "step"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_start_is_made(
    number: signal.Signals, code: int, command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is there yet, and that is said; of a resumed run its checkpoint is."""

    def stop(*_: Any, **__: Any) -> None:
        signal.raise_signal(number)

    for at, then in ((0, "nothing was saved yet"), (2, "--resume")):
        with monkeypatch.context() as patch:
            if at:
                stop_at(patch, at, signal.SIGINT)
                softprompt(*command, "--name", "tone")
            patch.setattr(run, "training_start", stop)
            stopped = softprompt(*command, "--name", "tone", *(["--resume"] if at else []))
        assert stopped.exit_code == code
        assert f"stopped by {number.name}" in stopped.stderr and then in stopped.stderr
        assert "Traceback" not in stopped.output
    done(*command, "--name", "tone", "--resume")


def test_an_interrupted_run_may_be_started_anew(command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGINT)
        stopped = softprompt(*command, "--name", "tone", "--json")
    assert stopped.exit_code == 130
    assert "saved" not in [line["event"] for line in json_lines(stopped.stdout)]
    assert "--resume" in stopped.stderr
    lines = json_lines(done(*command, "--name", "tone", "--json", "--overwrite").stdout)
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3]


def test_a_run_that_fails_says_how_to_go_on(command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TrainError("the machine is on fire")

    for at, hint in ((0, "None"), (2, "--resume")):
        with monkeypatch.context() as patch:
            if at:
                stop_at(patch, at, signal.SIGINT)
                softprompt(*command, "--name", "tone")
            patch.setattr(run, "train", fail)
            error = refused(*command, "--name", "tone", *(["--resume"] if at else []))
        assert error.what == "the machine is on fire" and hint in str(error.hint)


# --- mistakes ---


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({}, ["there is no such data file"]),
        ({"rows.jsonl": '{"text": "a", "label": "b"}\n{"text": \n'}, ["rows.jsonl:2", "not valid JSON"]),
        ({"rows.jsonl": ""}, ["rows.jsonl", "no rows"]),
        ({"rows.jsonl": '{"text": "a", "label": "b"}\n' * 2 + '{"text": "a"}\n'}, ["rows.jsonl:3", "label"]),
        ({"rows.jsonl": '{"strange": "a"}\n'}, ["rows.jsonl:1", "none of the known fields"]),
    ],
)
def test_bad_data_is_found_before_the_model_is_loaded(files: dict[str, str], parts: list[str], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    error = refused(
        "train", "--model", tmp_path / "no-model", "--data", tmp_path / "rows.jsonl", "--name", "tone", *SHORT
    )
    assert isinstance(error, DataError), "rows come first: a missing model would be an error, too"
    assert [part for part in parts if part not in str(error)] == []
    assert not store.home().exists()


@pytest.mark.usefixtures("no_model")
def test_an_unknown_label_is_found_before_the_model_is_loaded(base: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", *labelled(4))
    write_jsonl(tmp_path / "validation.jsonl", *labelled(1), {"text": "row 9", "label": "purple"})
    error = refused("train", "--model", base, "--data", tmp_path, "--name", "tone", *SHORT)
    assert isinstance(error, DataError)
    assert "purple" in str(error.got) and str(error.where).endswith("validation.jsonl:2")


@pytest.mark.usefixtures("no_model")
def test_good_data_is_not_refused(command: tuple[object, ...]) -> None:
    """What shows that the tests above look at the right moment."""
    assert "a base model was loaded" in str(softprompt(*command, "--name", "tone").exception)


@pytest.mark.usefixtures("no_model")
def test_flags_that_are_missing(base: Path, rows: Path) -> None:
    assert "name is not given" in refused("train", "--model", base, "--data", rows).what
    assert "data is not given" in refused("train", "--model", base, "--name", "tone").what
    assert "not a usable name" in refused("train", "--model", base, "--data", rows, "--name", "Bad Name").what


def test_rows_that_are_too_long(base: Path, tmp_path: Path, no_model: None) -> None:
    path = same_answer(tmp_path / "rows.jsonl", "ok", 8)
    with path.open("a") as file:
        file.writelines(json.dumps({"prompt": "x" * 100, "completion": "ok"}) + "\n" for _ in range(2))
    command = ("train", "--model", base, "--data", path, "--name", "tone", *SHORT, "--max-length", 60)
    error = refused(*command)
    assert isinstance(error, DataError)
    assert "--drop-long" in str(error.hint) and "rows.jsonl:9" in str(error.where)


def test_long_rows_may_be_left_out(base: Path, tmp_path: Path) -> None:
    long = [{"prompt": "x" * 100, "completion": "ok"}] * 2
    short = [{"prompt": f"question {i}", "completion": "ok"} for i in range(8)]
    write_jsonl(tmp_path / "train.jsonl", *short, *long)
    write_jsonl(tmp_path / "validation.jsonl", *short[:3], long[0])
    command = ("train", "--model", base, "--data", tmp_path, "--name", "tone", *SHORT, "--max-length", 60)
    output = done(*command, "--drop-long").stdout
    assert "note: 3 rows of over 60 tokens left out" in output
    assert "data        8 rows to train, 3 to validate" in output
    assert parsed("show", "tone", "--json")["data"]["train_rows"] == 8


@pytest.mark.parametrize(("model", "part"), [("owner/nowhere", "Hub"), ("./nowhere", "no such"), ("empty", "config")])
def test_a_model_that_is_not_there(
    model: str, part: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    error = refused("train", "--model", model, "--data", rows, "--name", "tone", *SHORT)
    assert isinstance(error, ModelError)
    assert part in str(error)


def test_nothing_to_resume_leaves_nothing(command: tuple[object, ...]) -> None:
    refused(*command, "--name", "tone", "--resume")
    assert not store.home().exists()


def test_a_timed_run_says_what_to_expect_of_this_machine(
    command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "measured_pace", lambda *given: Pace(1.0, 0.0))
    output = done(*command, "--name", "tone", "--minutes", 0.5, "--steps", 2).stdout
    expected = r"^expected    about 2 steps of \d rows in 2 seconds \(1 s a step on this machine\)$"
    assert re.search(expected, output, re.MULTILINE)
    assert "too few" not in output
    output = done(*command, "--name", "tone", "--minutes", 1e-5, "--overwrite").stdout
    assert "note: 1 step is too few to learn much: 200 steps take about 4 minutes on this machine" in output
