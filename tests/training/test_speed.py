"""A timed run measures this machine first; a resumed one chooses by what was measured at its start."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.training import speed
from softprompt.training.auto import TaskStats
from softprompt.training.config import Config, resolve
from softprompt.training.events import Event
from softprompt.training.pace import PACE_FILE, Pace, read_pace
from softprompt.training.prepare import PreparedTraining, prepare
from softprompt.training.run import fit
from softprompt.training.speed import measured_pace, on_this_machine
from tests.support.saved import save_tiny, settings
from tests.support.tiny import DEVICE, tiny_lm, tiny_seq2seq_model, tiny_tokenizer

QUICK, SLOW = Pace(0.0, 1e-5), Pace(1.0, 0.05)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", bos=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))


def timed(base: Path, folder: Path, **changes: Any) -> Config:
    """Two minutes, with everything else left to the recipe."""
    fixed = settings(base, folder)
    given = {"model": fixed.model, "data": fixed.data, "name": "tone", "template": fixed.template, "device": DEVICE}
    given |= {"dtype": "float32", "train.minutes": 2}
    return resolve(given | {name.replace("__", "."): value for name, value in changes.items()})


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning"])
def test_what_is_measured(method: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that takes so long for each pass and for each token of its rows; the first passes take longer."""
    prepared = prepare(settings(base, tmp_path, method__name=method, train__minutes=2))
    true, now, passes = Pace(0.3, 0.02), [0.0], list[int]()
    real = speed.token_losses

    def losses(lm: FrozenLM, prefixes: Any, rows: Any, numbers: Any) -> Tensor:
        tokens = sum(len(row.ids) for row in rows)
        now[0] += true.step(tokens) + (len(passes) < 3) * 2
        passes.append(tokens)
        return real(lm, prefixes, rows, numbers)

    monkeypatch.setattr(speed, "token_losses", losses)
    pace = measured_pace(prepared, tiny_lm("llama", bos=True), lambda: now[0])
    assert (pace.per_step, pace.per_token) == pytest.approx((true.per_step, true.per_token))
    assert len(passes) == 5 and max(passes) <= 96, "a few tokens, and once more where that takes seconds"


@pytest.mark.parametrize(("seconds", "repeats"), [(0.1, 3), (5.0, 2), (30.0, 1)])
def test_long_passes_are_repeated_less_often(seconds: float, repeats: int) -> None:
    assert speed._repeats(seconds) == repeats


def test_quick_passes_are_repeated_and_the_quickest_counts(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, now = prepare(settings(base, tmp_path)), [0.0]
    delays = iter([0.0, 0.05, 0.0, 0.0, 0.07, 0.03, 0.02])
    real = speed.token_losses

    def losses(lm: FrozenLM, prefixes: Any, rows: Any, numbers: Any) -> Tensor:
        now[0] += sum(len(row.ids) for row in rows) * 1e-3 + next(delays)
        return real(lm, prefixes, rows, numbers)

    monkeypatch.setattr(speed, "token_losses", losses)
    pace = measured_pace(prepared, tiny_lm("llama", bos=True), lambda: now[0])
    assert (pace.per_step, pace.per_token) == pytest.approx((0.0, 1e-3), abs=1e-6)


@pytest.mark.parametrize("rows", ["whole", "cut"])
def test_rows_of_any_length_make_the_passes(rows: str, base: Path, tmp_path: Path) -> None:
    task = prepare(settings(base, tmp_path)).tasks[0]
    for tokens in (2, 12, 96, 1000):
        made = list(speed._some_rows(task.train, tokens, cut=rows == "cut"))
        total = sum(len(row.ids) for row in made)
        assert made and all(len(row.ids) == len(row.mask) and any(row.mask) and not row.mask[0] for row in made)
        assert tokens - 2 < total <= tokens if rows == "cut" else total >= tokens - 1


def test_an_encoder_decoder_is_measured_with_whole_rows(tmp_path: Path) -> None:
    tiny_seq2seq_model("t5-1.1").save_pretrained(tmp_path / "t5")
    tiny_tokenizer(closing=True).save_pretrained(tmp_path / "t5")
    lm = load_model(str(tmp_path / "t5"), dtype="float32", device=DEVICE)
    pace = measured_pace(prepare(settings(tmp_path / "t5", tmp_path, method__name="prompt-tuning")), lm)
    assert pace.step(100) > 0


def test_an_encoder_decoder_with_long_rows_is_measured(tmp_path: Path) -> None:
    """One row has more tokens than either pass."""
    tiny_seq2seq_model("t5-1.1").save_pretrained(tmp_path / "t5")
    tiny_tokenizer(closing=True).save_pretrained(tmp_path / "t5")
    lm = load_model(str(tmp_path / "t5"), dtype="float32", device=DEVICE)
    prepared = prepare(settings(tmp_path / "t5", tmp_path, method__name="prompt-tuning"))
    task = prepared.tasks[0]
    row = replace(task.train[0], ids=task.train[0].ids * 40, mask=task.train[0].mask * 40)
    pace = measured_pace(replace(prepared, tasks=(replace(task, train=(row,)),)), lm)
    assert len(row.ids) > 96 and pace.step(100) > 0


def chosen(prepared: PreparedTraining) -> tuple[object, ...]:
    config = prepared.config
    return config.train.batch_size, config.method.text_tokens, config.method.init, config.train.lr


def test_a_slow_machine_has_other_choices(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, lm = prepare(timed(base, tmp_path)), tiny_lm("llama", bos=True)
    prepared = replace(prepared, facts=TaskStats(1, 7000, 4, 60.0, 2048))
    found = dict[str, PreparedTraining]()
    for name, pace in {"quick": QUICK, "slow": SLOW}.items():
        monkeypatch.setattr(speed, "measured_pace", lambda *given, pace=pace: pace)
        found[name] = on_this_machine(prepared, lm)
        assert found[name].facts.pace == pace and found[name].config.recipe == "fixed"
        assert on_this_machine(found[name], lm) is found[name], "once"
    assert chosen(found["quick"]) == (4, 1024, "selected", 2e-2)
    assert chosen(found["slow"]) == (2, 512, "selected", 2e-2)
    assert any("fit into 2 minutes here" in choice.why for choice in found["slow"].choices)


def test_what_the_user_set_or_a_caller_changed_stays(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "measured_pace", lambda *given: SLOW)
    lm = tiny_lm("llama", bos=True)
    prepared = prepare(timed(base, tmp_path, train__batch_size=5))
    faster = prepared.config.train.model_copy(update={"lr": prepared.config.train.lr * 0.5})
    prepared = replace(prepared, config=prepared.config.model_copy(update={"train": faster}))
    found = on_this_machine(prepared, lm)
    assert found.config.train.batch_size == 5
    assert found.config.train.lr == faster.lr, "as a job's factor of the rate"
    fixed = prepare(settings(base, tmp_path, train__minutes=2), overwrite=True)
    assert on_this_machine(fixed, lm).config == fixed.config


def test_a_resumed_run_chooses_by_the_speed_at_its_start(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, lm = timed(base, tmp_path), tiny_lm("llama", bos=True)
    monkeypatch.setattr(speed, "measured_pace", lambda *given: SLOW)

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 3:
            signal.raise_signal(signal.SIGTERM)

    fit(prepare(config), lm, report=stop)
    run = prepare(config, resume=True).run
    assert read_pace(run) == SLOW
    monkeypatch.setattr(speed, "measured_pace", lambda *given: pytest.fail("measured again"))
    seen = list[Event]()

    def end(event: Event) -> None:
        seen.append(event)
        stop(event)
        if event.kind == "step" and event.step == 5:
            signal.raise_signal(signal.SIGTERM)

    result = fit(prepare(config, resume=True), lm, resume=True, report=end).result
    assert result.step == 5 and next(event.step for event in seen if event.kind == "start") == 3
    (run / PACE_FILE).write_text('{"per_step": "x"}')
    assert read_pace(run) is None
