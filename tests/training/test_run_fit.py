"""A run: it learns, writes an artifact whose card is true, and leaves nothing else behind but its log."""

from __future__ import annotations

import errno
import importlib.metadata
import itertools
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from softprompt.data.splits import data_digest, load_splits
from softprompt.data.template import Template
from softprompt.errors import CheckpointError, ConfigError, DataError, GeometryError, StoreError
from softprompt.formatting.formatted_prompt import from_card, no_prompt
from softprompt.models import loading
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import learned_tokens, token_losses
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Layout
from softprompt.prompts.forms import prompt_digest as prompt_digest
from softprompt.training import base_model
from softprompt.training import run as run_module
from softprompt.training.artifacts import curves
from softprompt.training.config import resolve
from softprompt.training.events import Event
from softprompt.training.run import FitResult, PreparedTraining, build_trial, fit, prepare
from softprompt.training.run_log import read_log
from softprompt.training.starts import find_start
from softprompt.training.trial import Trial
from tests.support.rows import labelled, write_jsonl
from tests.support.saved import REAL, save_tiny, settings
from tests.support.tiny import DEVICE, tiny_lm

FILES = ["README.md", "card.json", "curve.png", "prompt.safetensors"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer puts a BOS first."""
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", bos=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    return tmp_path / "prompts"


@dataclass(frozen=True)
class Run:
    """A finished run and what was seen of it."""

    base: Path
    folder: Path
    prepared: PreparedTraining
    outcome: FitResult
    events: Sequence[Event]
    began: datetime


@pytest.fixture(scope="module", params=["prefix-tuning", "prompt-tuning"])
def run(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Sixty steps, with checkpoints on the way."""
    folder, events = tmp_path_factory.mktemp("run"), list[Event]()
    changes = {"method__name": request.param, "train__steps": 60, "train__lr": 0.3, "train__evals": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTPROMPT_HOME", str(folder / "prompts"))
        config = settings(base, folder, **changes, train__save_every=20, train__patience=None)
        began = datetime.now(UTC)
        prepared = prepare(config)
        yield Run(
            base, folder, prepared, fit(prepared, tiny_lm("llama", bos=True), report=events.append), events, began
        )


def test_it_learns(run: Run) -> None:
    history, best = run.outcome.result.history, run.outcome.result.validation_loss
    assert best is not None
    assert best < history[0]["validation_loss"] * (0.5 if run.outcome.card.form == "kv" else 0.8)
    assert not run.outcome.result.interrupted


def loss_of(lm: FrozenLM, prompt: SoftPrompt, run: Run) -> float:
    """Nats per learned token of the validation rows, in the frame that the saved card gives."""
    formatted = from_card(prompt, store.load_card(run.prepared.folder))
    with torch.no_grad():
        prefixes = prepare_prefixes(lm, [formatted.prefix(lm)])
    rows = run.prepared.tasks[0].validation
    return token_losses(lm, prefixes, rows).sum().item() / learned_tokens(rows)


def test_the_loaded_artifact_is_the_trained_prompt(run: Run) -> None:
    """Bit by bit, and its loss is the one that was reported."""
    lm = tiny_lm("llama", bos=True)
    prompt, card = store.load(run.prepared.folder, lm.geometry)
    assert prompt_digest(prompt) == prompt_digest(run.outcome.result.prompt) == card.sha256
    loss = loss_of(lm, prompt, run)
    assert loss == loss_of(lm, run.outcome.result.prompt, run)
    assert loss == pytest.approx(run.outcome.result.validation_loss, rel=1e-5)
    assert loss == pytest.approx(min(h["validation_loss"] for h in run.outcome.result.history), rel=1e-5)


def test_the_card_tells_the_truth(run: Run) -> None:
    card, config, result = store.load_card(run.prepared.folder), run.prepared.config, run.outcome.result
    kv = config.method.name == "prefix-tuning"
    assert (card.name, card.form, card.n_tokens) == ("tone", "kv" if kv else "embedding", 6)
    assert card.geometry == tiny_lm("llama", bos=True).geometry
    assert card.layout == Layout(bos=not kv, follow="Row:")
    assert Template.from_dict(card.template) == REAL
    assert card.labels == ("even", "odd")
    rows = load_splits(run.folder / "data").train
    assert card.data == {"train_sha256": data_digest(rows), "train_rows": 24, "validation_rows": 8}
    assert (card.method["name"], card.method["n_tokens"]) == (config.method.name, 6)
    assert (card.recipe["lr"], card.recipe["steps"], card.recipe["seed"]) == (0.3, 60, 0)
    assert card.metrics["validation_loss"] == result.validation_loss
    assert (card.metrics["steps"], card.metrics["stopped"]) == (60, "steps")
    assert card.metrics["seconds"] == pytest.approx(result.seconds, abs=0.06)
    assert card.versions["torch"] == importlib.metadata.version("torch")
    assert card.versions["softprompt"] == importlib.metadata.version("softprompt")
    created = datetime.fromisoformat(card.created)
    assert run.began - timedelta(seconds=1) <= created <= datetime.now(UTC)
    told = run.outcome.card.model_dump(mode="json") | {"sha256": card.sha256}
    assert card.model_dump(mode="json") == json.loads(json.dumps(told)), "what the caller of `fit` gets"


def test_the_files_of_the_artifact(run: Run) -> None:
    folder = run.prepared.folder
    assert run.outcome.folder == folder
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    tensors = run.outcome.result.prompt.tensors().values()
    assert run.outcome.bytes == sum(4 * tensor.numel() for tensor in tensors)
    assert 0 < (folder / "prompt.safetensors").stat().st_size - run.outcome.bytes < 2000
    readme = (folder / "README.md").read_text()
    assert f"({run.outcome.card.form} form, {run.outcome.bytes / 1024:,.0f} KiB)" in readme
    assert "(curve.png)" in readme


def test_the_artifact_holds_no_path_of_this_machine_and_no_row(run: Run) -> None:
    text = "".join((run.prepared.folder / name).read_text() for name in ("README.md", "card.json"))
    for path in (run.folder, run.base, Path.cwd(), Path.home()):
        assert str(path) not in text
    assert "row 3" not in text


def test_what_is_left_of_the_run(run: Run) -> None:
    """Its log, its settings and its start; checkpoints are gone."""
    assert any(event.kind == "checkpoint" for event in run.events)
    assert sorted(path.name for path in run.prepared.run.iterdir()) == ["config.yaml", "metrics.jsonl", "starts"]
    assert resolve({}, run.prepared.run / "config.yaml") == run.prepared.config
    logged = read_log(run.prepared.run / "metrics.jsonl")
    assert logged == [{"event": e.kind, "step": e.step, **e.numbers} for e in run.events]
    assert [line["step"] for line in logged if line["event"] == "step"] == list(range(1, 61))


def test_the_start_is_kept_for_inspection(run: Run) -> None:
    """It is the untrained method's prompt, and found only for the soft prompt that came of it."""
    lm = tiny_lm("llama", bos=True)
    folder, card = run.outcome.saved[0]
    start = find_start(folder, card)
    assert start is not None
    (untrained,) = build_trial(run.prepared, lm).trial.learner.freeze()
    assert prompt_digest(start) == prompt_digest(untrained) != card.sha256
    assert find_start(folder, card.model_copy(update={"sha256": "1" * 64})) is None
    assert [path.name for path in (run.prepared.run / "starts").iterdir()] == [f"{folder.name}.safetensors"]


def test_a_damaged_start_is_as_none(run: Run, tmp_path: Path) -> None:
    folder, card = run.outcome.saved[0]
    copied = tmp_path / "prompts" / folder.name
    starts = tmp_path / "prompts" / ".runs" / folder.name / "starts"
    shutil.copytree(run.prepared.run / "starts", starts)
    assert find_start(copied, card) is not None
    (starts / f"{folder.name}.safetensors").write_bytes(b"damaged")
    assert find_start(copied, card) is None


def test_the_curve_is_of_the_log(run: Run) -> None:
    train, validation = curves(run.prepared.run / "metrics.jsonl")
    assert [step for step, _ in train] == list(range(1, 61))
    assert [loss for _, loss in train] == [e.numbers["loss"] for e in run.events if e.kind == "step"]
    assert validation == [(h["step"], h["validation_loss"]) for h in run.outcome.result.history]


def test_it_does_not_replace_what_is_there(run: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTPROMPT_HOME", str(run.folder / "prompts"))
        with pytest.raises(StoreError, match="--overwrite"):
            prepare(run.prepared.config)


def test_overwriting_begins_anew(base: Path, tmp_path: Path) -> None:
    lm, config = tiny_lm("llama", bos=True), settings(base, tmp_path)
    first = fit(prepare(config), lm)
    other = settings(base, tmp_path, train__seed=3, train__steps=4, method__init="vocab")
    second = fit(prepare(other, overwrite=True), lm, overwrite=True)
    assert second.folder == first.folder
    assert store.load_card(prepare(config, overwrite=True).folder).recipe["seed"] == 3
    assert prompt_digest(first.result.prompt) != prompt_digest(second.result.prompt)
    assert [line["step"] for line in read_log(second.run / "metrics.jsonl") if line["event"] == "step"] == [1, 2, 3, 4]
    assert resolve({}, second.run / "config.yaml") == other


def stop_at(step: int) -> Callable[[Event], None]:
    def report(event: Event) -> None:
        if (event.kind, event.step) == ("step", step):
            signal.raise_signal(signal.SIGTERM)

    return report


def test_a_run_that_is_stopped_leaves_a_checkpoint_and_no_artifact(base: Path, tmp_path: Path, home: Path) -> None:
    """And resumed, it is the run that was not stopped, in its log too."""
    lm, config = tiny_lm("llama", bos=True), settings(base, tmp_path)
    outcome = fit(prepare(config), lm, report=stop_at(3))
    assert (outcome.folder, outcome.bytes, outcome.result.stopped) == (None, 0, "SIGTERM")
    assert not (home / "tone").exists()
    assert (home / ".runs" / "tone" / "checkpoint-000003").is_dir()
    with pytest.raises(StoreError, match="an unfinished run"):
        prepare(config)
    resumed = fit(prepare(config, resume=True), lm, resume=True)
    straight = fit(prepare(settings(base, tmp_path, name="straight")), lm)
    assert resumed.folder == home / "tone"
    assert store.load_card(home / "tone").sha256 == store.load_card(home / "straight").sha256
    logs = [read_log(one.run / "metrics.jsonl") for one in (resumed, straight)]
    for kind in ("step", "validation"):
        mine, theirs = ([(e["step"], e.get("loss")) for e in log if e["event"] == kind] for log in logs)
        assert mine == theirs
    assert sorted(path.name for path in resumed.run.iterdir()) == ["config.yaml", "metrics.jsonl", "starts"]


def test_nothing_to_resume(base: Path, tmp_path: Path, home: Path) -> None:
    config = settings(base, tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)nothing to resume.*without --resume"):
        fit(prepare(config, resume=True), tiny_lm("llama", bos=True), resume=True)
    assert not (home / "tone").exists()


def test_the_model_is_loaded_as_the_settings_say(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def listen(name: str, **options: Any) -> FrozenLM:
        asked.append((name, options))
        return loading.load_model(name, **options)

    monkeypatch.setattr(base_model, "load_model", listen)
    outcome = fit(prepare(settings(base, tmp_path)))
    fit(prepare(settings(base, tmp_path, name="two", dtype="bfloat16")), trust_remote_code=True)
    options = {"dtype": "float32", "device": DEVICE, "load_in": None, "device_map": None, "fsdp": False}
    options |= {"trust_remote_code": False}
    assert asked == [
        (str(base), options),
        (str(base), options | {"dtype": "bfloat16", "trust_remote_code": True}),
    ]
    assert outcome.card.geometry.base == str(base), "what `generate` loads when no --model is given"


def test_conversations(base: Path, tmp_path: Path) -> None:
    """No template, no labels, nothing before the rows but the prompt."""
    turns = [[("user", f"Say {i}"), ("assistant", f"{i}!")] for i in range(6)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in turns]
    data = write_jsonl(tmp_path / "talk.jsonl", *rows)
    outcome = fit(prepare(settings(base, tmp_path, data=str(data), template=None)), tiny_lm("llama", bos=True))
    card = json.loads((tmp_path / "prompts" / "tone" / "card.json").read_text())
    assert (card["labels"], card["layout"]) == ([], Layout().model_dump())
    assert card["template"] == {"kind": "chat", "text": "", "system": ""}
    assert card["data"]["train_rows"] == 5, "one row was split off"
    assert outcome.card.data["validation_rows"] == 1


def test_a_taken_name_is_refused_before_training(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second `fit`, or one without `overwrite`, must not train first and refuse then."""
    prepared = prepare(settings(base, tmp_path))
    fit(prepared)
    monkeypatch.setattr(run_module, "train", lambda *args, **kwargs: pytest.fail("it trained"))
    with pytest.raises(StoreError, match="of that name"):
        fit(prepared)


def test_a_row_without_room_is_refused_before_training(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(base, tmp_path, method__n_tokens=250)
    monkeypatch.setattr(run_module, "train", lambda *args, **kwargs: pytest.fail("it trained"))
    with pytest.raises(DataError, match="context") as caught:
        fit(prepare(config))
    assert ".jsonl:" in str(caught.value.where)


def test_a_refused_resume_changes_nothing(base: Path, tmp_path: Path, home: Path) -> None:
    """With other settings it is another run: config.yaml and the log stay those of the first."""

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 2:
            signal.raise_signal(signal.SIGINT)

    assert fit(prepare(settings(base, tmp_path)), report=stop).folder is None
    run = home / ".runs" / "tone"
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    other = settings(base, tmp_path, train__lr=0.5)
    with pytest.raises(CheckpointError):
        fit(prepare(other, resume=True), resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert fit(prepare(settings(base, tmp_path), resume=True), resume=True).folder


def test_the_card_returned_is_the_card_saved(base: Path, tmp_path: Path) -> None:
    outcome = fit(prepare(settings(base, tmp_path)))
    assert outcome.folder is not None
    assert outcome.card == store.load_card(outcome.folder)


def stopped_run(base: Path, folder: Path) -> Path:
    """A run that was stopped after three steps; its folder."""
    outcome = fit(prepare(settings(base, folder)), report=stop_at(3))
    assert outcome.folder is None
    return outcome.run


@pytest.mark.parametrize(
    "changes",
    [
        {"template": "Line: {text}\\nLabel:"},
        {"template": "Row: {text}\\nLabex:"},
        {"method__init_text": "Say even or odd."},
        {"max_length": 99},
    ],
)
def test_a_resumed_run_has_the_template_and_the_start_of_the_first(
    base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Else the card would name one frame and the prompt be trained in two."""
    stopped_run(base, tmp_path)
    other = settings(base, tmp_path, **changes)
    with pytest.raises(CheckpointError, match="with other settings") as caught:
        fit(prepare(other, resume=True), resume=True)
    (name,) = (change.replace("__", ".") for change in changes)
    assert str(caught.value.expected).startswith(f"{name} ") and str(caught.value.got).startswith(f"{name} ")
    assert caught.value.expected != caught.value.got


def test_a_resumed_run_is_judged_by_the_same_rows(base: Path, tmp_path: Path) -> None:
    stopped_run(base, tmp_path)
    write_jsonl(tmp_path / "data" / "validation.jsonl", *labelled(8, 200))
    with pytest.raises(CheckpointError, match="same settings, but with other rows"):
        fit(prepare(settings(base, tmp_path), resume=True), resume=True)


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning"])
def test_a_prompt_longer_than_the_window_is_refused_before_training(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(save_tiny(tmp_path / "mistral", "mistral"), tmp_path, method__name=method, method__n_tokens=12)
    monkeypatch.setattr(run_module, "train", lambda *args, **kwargs: pytest.fail("it trained"))
    with pytest.raises(GeometryError, match=r"(?s)longer than the sliding window.*<= 11"):
        fit(prepare(config))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_no_name(base: Path, tmp_path: Path, overwrite: bool) -> None:
    """Refused before anything is read or trained, and never removed."""
    with pytest.raises(StoreError, match="is not a soft prompt, so it will not be replaced"):
        prepare(settings(base, tmp_path, name=str(tmp_path / "data")), overwrite=overwrite)
    assert len(list((tmp_path / "data").iterdir())) == 2


def test_a_place_that_cannot_be_written_is_refused_before_training(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "file" / "prompts"))
    with pytest.raises(StoreError, match="not a folder"):
        prepare(settings(base, tmp_path))


def test_a_disk_that_fills_up_is_a_typed_error(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    prepared = prepare(settings(base, tmp_path))
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match="cannot write: No space left on device"):
        fit(prepared)


def test_the_start_takes_from_the_minutes(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that took fifteen seconds leaves forty-five of a minute."""
    seen, now = list[float](), itertools.count(0, 15)

    def opened(lm: FrozenLM, trials: list[Trial], folder: Path, **options: Any) -> NoReturn:
        seen.extend(trials[0].progress(elapsed) for elapsed in (0.0, 9.0, 45.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(run_module, "train", opened)
    with pytest.raises(KeyboardInterrupt):
        fit(prepare(settings(base, tmp_path, train__minutes=1)), tiny_lm("llama", bos=True))
    assert seen == [0.0, 0.2, 1.0]


def test_a_resumed_run_keeps_the_time_that_its_start_took(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the start takes when it is made again."""
    seen, now = list[float](), itertools.count(0, 15)
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    config, lm = settings(base, tmp_path, train__minutes=10, train__steps=None), tiny_lm("llama", bos=True)

    def told(event: Event) -> None:
        if event.kind == "step":
            seen.append(event.numbers["progress"] / event.numbers["elapsed"])
            signal.raise_signal(signal.SIGTERM)

    fit(prepare(config), lm, report=told)
    now = itertools.count(0, 100)
    fit(prepare(config, resume=True), lm, resume=True, report=told)
    assert seen == pytest.approx([1 / 585, 1 / 585])


def test_virtual_tokens_inside_a_sentence(base: Path, tmp_path: Path) -> None:
    """The words stand around them in training, on the card and behind it; the base is compared without them."""
    lm = tiny_lm("llama", bos=True)
    changes = {"method__name": "prompt-tuning", "frame": "Please {prompt}."}
    prepared = prepare(settings(base, tmp_path, **changes))
    result = fit(prepared, lm)
    formatted = from_card(*store.load(result.saved[0][0], lm.geometry))
    assert (formatted.layout.lead, formatted.layout.follow) == ("Please", ".\n\nRow:")
    trial = run_module.build_trial(prepared, lm).trial
    prefix = formatted.prefix(lm)
    assert (trial.tasks[0].lead, trial.tasks[0].follow) == (prefix.lead, prefix.follow)
    assert result.result.validation_loss == pytest.approx(
        token_losses(lm, prepare_prefixes(lm, [prefix]), prepared.tasks[0].validation).mean().item(), rel=1e-4
    )
    assert no_prompt(lm, formatted.template).layout.follow == "Row:"


@pytest.mark.parametrize(
    ("frame", "method", "text"),
    [
        ("Please do it.", "prompt-tuning", "one place"),
        ("{prompt} {prompt}", "prompt-tuning", "one place"),
        ("Please {prompt}.", "prefix-tuning", "before keys and values"),
    ],
)
def test_frames_that_are_refused(base: Path, tmp_path: Path, frame: str, method: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        fit(prepare(settings(base, tmp_path, method__name=method, frame=frame)), tiny_lm("llama", bos=True))
