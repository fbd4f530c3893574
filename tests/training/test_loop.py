"""The training loop: it learns, stops when it should, keeps the best prompt, and fails loudly."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import softprompt.training.loop as train_module
from softprompt.data.sampler import Batches, sample
from softprompt.data.tokenize import Example
from softprompt.errors import CheckpointError, ConfigError, NonFiniteLossError, TrainError
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import learned_tokens, token_losses
from softprompt.objectives.schedule import default_steps, rate
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import prompt_digest
from softprompt.training import batched_losses
from softprompt.training.config import TrainConfig
from softprompt.training.events import Event
from softprompt.training.trial import Task, Trial
from tests.support.cases import text_ids
from tests.support.tasks import ANSWER, END, METHOD_NAMES, answers, learner, run, task
from tests.support.tiny import FAMILIES, tiny_lm


class Clock:
    """A monotonic clock on which every look takes so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0

    def monotonic(self) -> float:
        self.now += self.seconds
        return self.now


def validation_loss(prompt: SoftPrompt, rows: Sequence[Example]) -> float:
    lm, own = tiny_lm("llama"), task()
    with torch.no_grad():
        prefixes = prepare_prefixes(lm, [Prefix(prompt, own.lead, own.follow)])
    return token_losses(lm, prefixes, rows).sum().item() / learned_tokens(rows)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_it_learns_what_the_model_cannot_do(method: str, tmp_path: Path) -> None:
    """Nats per token on held-out rows fall by most, and greedy answers come out right."""
    lm = tiny_lm("llama")
    result = run(lm, learner(lm, method), tmp_path, steps=150, lr=0.3, evals=5, patience=None)
    first, last = result.history[0]["validation_loss"], result.validation_loss
    assert last is not None
    assert last < first * (0.5 if method == "prompt-tuning" else 0.15)
    assert validation_loss(result.prompt, task().validation) == pytest.approx(last, rel=1e-4)
    if method != "prompt-tuning":  # six embeddings are too weak for two random layers
        assert right_answers(learner(lm, method).freeze()[0]) == 0
        assert right_answers(result.prompt) >= 8


def right_answers(prompt: SoftPrompt) -> int:
    """How many of 16 new rows get exactly the answer, greedily."""
    lm, own = tiny_lm("llama"), task()
    with torch.no_grad():
        prefixes = prepare_prefixes(lm, [Prefix(prompt, own.lead, own.follow)])
    given = [text_ids(5, 7777 + i) for i in range(16)]
    made = decode_batch(lm, prefixes, given, [0] * 16, Sampling(max_new_tokens=6), end_ids=[[END]] * 16)
    return sum((tuple(answer.ids), answer.finish) == (ANSWER, "stop") for answer in made)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains(family: str, tmp_path: Path) -> None:
    lm = tiny_lm(family)
    before = lm.digest()
    result = run(lm, learner(lm, "prefix-tuning"), tmp_path, steps=25, lr=0.3, patience=None)
    assert result.validation_loss is not None
    assert lm.digest() == before, "law 4: the base model is as it was"
    assert result.validation_loss < result.history[0]["validation_loss"] - 0.5


def test_events(tmp_path: Path) -> None:
    lm, events = tiny_lm("llama"), list[Event]()
    result = run(lm, learner(lm, "prompt-tuning"), tmp_path, steps=10, evals=4, save_every=3, report=events.append)
    at = {kind: [e.step for e in events if e.kind == kind] for kind in ("step", "validation", "checkpoint", "end")}
    assert at == {
        "step": list(range(1, 11)),
        "validation": [0, 3, 6, 9, 10],
        "checkpoint": [3, 6, 9],
        "end": [10],
    }
    assert [h["step"] for h in result.history] == at["validation"]
    steps = [e.numbers for e in events if e.kind == "step"]
    for number, event in enumerate(steps):
        assert event["lr"] == pytest.approx(TrainConfig().lr * rate("cosine", 0.05, number / 10))
        assert event["epoch"] == pytest.approx((number + 1) * 8 / 40)
        assert event["grad_norm"] > 0
    assert steps[0]["tokens"] == sum(len(task().train[i].ids) for i in first_batch())
    assert (result.stopped, result.step, result.interrupted) == ("steps", 10, False)


def first_batch() -> list[int]:
    own = task()
    return Batches([len(e.ids) for e in own.train], 8, 0).next_batch()


def test_the_best_prompt_is_kept(tmp_path: Path) -> None:
    """After step 5 somebody spoils the prompt: what is returned is that of the best validation."""
    lm = tiny_lm("llama")
    mine, seen = learner(lm, "prefix-tuning"), list[tuple[float, str]]()

    def report(event: Event) -> None:
        if event.kind == "validation":
            seen.append((event.numbers["validation_loss"], prompt_digest(mine.freeze()[0])))
            assert event.numbers["best"] == min(loss for loss, _ in seen)
        if event.kind == "step" and event.step == 6:
            with torch.no_grad():
                for parameter in mine.parameters():
                    parameter.normal_(0.0, 5.0)

    result = run(lm, mine, tmp_path, steps=10, evals=5, lr=0.3, patience=None, report=report)
    best, of_best = min(seen)
    assert 0 < seen.index((best, of_best)) < len(seen) - 2, "neither the first nor one of the spoilt"
    assert (result.validation_loss, prompt_digest(result.prompt)) == (best, of_best)
    assert validation_loss(result.prompt, task().validation) == pytest.approx(best, rel=1e-5)


def test_without_validation_rows_the_last_prompt_is_kept(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    mine = learner(lm, "prompt-tuning")
    result = run(lm, mine, tmp_path, rows=task(validation=0), steps=4)
    assert (result.validation_loss, result.history) == (None, [])
    assert prompt_digest(result.prompt) == prompt_digest(mine.freeze()[0])
    assert prompt_digest(result.prompt) != prompt_digest(learner(lm, "prompt-tuning").freeze()[0])


def test_eval_rows_are_a_sample_of_the_validation_rows(tmp_path: Path) -> None:
    """A file sorted by label must not be judged by its first label alone."""
    lm, seen = tiny_lm("llama"), set[tuple[int, ...]]()
    start = learner(lm, "prompt-tuning").freeze()[0]
    for count, seed in ((3, 0), (3, 1), (3, 2), (8, 0), (100, 0)):
        result = run(lm, learner(lm, "prompt-tuning"), tmp_path, steps=1, eval_rows=count, seed=seed)
        judged = sample(8, count, seed)
        seen.add(tuple(judged))
        wanted = validation_loss(start, [task().validation[i] for i in judged])
        assert result.history[0]["validation_loss"] == pytest.approx(wanted, rel=1e-5)
    assert len(seen) == 4 and tuple(range(8)) in seen


def test_validation_in_parts_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    monkeypatch.setattr(batched_losses, "EVAL_TOKENS", 12)
    result = run(lm, learner(lm, "prompt-tuning"), tmp_path, steps=1)
    wanted = validation_loss(learner(lm, "prompt-tuning").freeze()[0], task().validation)
    assert result.history[0]["validation_loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("patience", [1, 3])
def test_patience(patience: int, tmp_path: Path) -> None:
    """Nothing moves at this rate, so no validation is better than the first."""
    lm = tiny_lm("llama")
    result = run(lm, learner(lm, "prompt-tuning"), tmp_path, steps=10, evals=10, lr=1e-30, patience=patience)
    assert (result.stopped, len(result.history)) == ("patience", 1 + patience)
    assert result.step == patience


def test_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute, a second for every look at the clock: one a step, two a validation. The rate falls with time."""
    lm, events = tiny_lm("llama"), list[Event]()
    monkeypatch.setattr(train_module, "time", Clock(1.0))
    result = run(
        lm, learner(lm, "prompt-tuning"), tmp_path, steps=None, minutes=0.5, patience=None, report=events.append
    )
    steps = [e for e in events if e.kind == "step"]
    assert result.stopped == "minutes"
    assert 22 <= len(steps) <= 30
    assert steps[-1].numbers["lr"] < 0.05 * max(e.numbers["lr"] for e in steps)
    assert [h["step"] for h in result.history][-1] == result.step


def test_validations_take_little_of_the_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one takes as long as ten steps, most that are due are left out; the last state is judged all the same."""
    lm, clock, seen = tiny_lm("llama"), Clock(1.0), list[Event]()
    real = train_module.validation_losses

    def slow(*args: Any) -> list[float]:
        clock.now += 10
        return real(*args)

    monkeypatch.setattr(train_module, "time", clock)
    monkeypatch.setattr(train_module, "validation_losses", slow)
    changes: dict[str, Any] = {"steps": None, "minutes": 5.0, "evals": 40, "patience": None}
    result = run(lm, learner(lm, "prompt-tuning"), tmp_path, report=seen.append, **changes)
    assert 3 <= len([event for event in seen if event.kind == "validation"]) <= 6
    assert result.history[-1]["step"] == result.step
    few = run(lm, learner(lm, "prompt-tuning"), tmp_path / "b", steps=40, evals=40, patience=None)
    assert len(few.history) == 41, "without minutes every one that is due"


@pytest.mark.parametrize(("minutes", "wanted"), [(1.0, 8), (4.0, 12), (60.0, 24)])
def test_a_run_is_judged_by_as_many_rows_as_it_has_time_for(
    minutes: float, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row takes a second: at the start and at the end a twentieth of the time each, but never by fewer than eight
    rows; the same ones throughout, after a stop too, drawn by seed and in order."""
    lm, clock, judged = tiny_lm("llama"), Clock(0.0), list[list[str]]()
    real = train_module.validation_losses

    def slow(lm: FrozenLM, trial: Trial, share: float | None = None) -> list[float]:
        (rows,) = trial.sample_validation_rows(share)
        clock.now += len(rows)
        judged.append([row.where for row in rows])
        return real(lm, trial, share)

    def stop(event: Event) -> None:
        clock.now += event.kind == "step"
        if event.kind == "validation":
            assert event.numbers["rows"] == wanted
        if event.kind == "step" and event.step == 20:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train_module, "time", clock)
    monkeypatch.setattr(train_module, "validation_losses", slow)
    changes: dict[str, Any] = {"steps": 40, "minutes": minutes, "evals": 4, "patience": None, "eval_rows": 24}
    many = task(validation=30)
    run(lm, learner(lm, "prompt-tuning"), tmp_path, rows=many, report=stop, **changes)
    run(lm, learner(lm, "prompt-tuning"), tmp_path, rows=many, resume=True, **changes)
    assert len(judged[0]) == train_module.PROBE_ROWS and len(judged) >= 3
    assert all(rows == judged[1] and len(rows) == wanted for rows in judged[1:])


def test_steps_or_minutes_whichever_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    monkeypatch.setattr(train_module, "time", Clock(1.0))
    few = run(lm, learner(lm, "prompt-tuning"), tmp_path / "a", steps=5, minutes=0.5, patience=None)
    many = run(lm, learner(lm, "prompt-tuning"), tmp_path / "b", steps=50, minutes=0.2, patience=None)
    assert (few.stopped, few.step) == ("steps", 5)
    assert many.stopped == "minutes"
    assert many.step < 13


def test_time_counts_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    monkeypatch.setattr(train_module, "time", Clock(1.0))
    changes: dict[str, Any] = {"steps": None, "minutes": 0.5, "patience": None}

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 20:
            signal.raise_signal(signal.SIGTERM)

    run(lm, learner(lm, "prompt-tuning"), tmp_path, report=stop, **changes)
    result = run(lm, learner(lm, "prompt-tuning"), tmp_path, resume=True, **changes)
    assert result.stopped == "minutes"
    assert 22 <= result.step <= 30


def poison(monkeypatch: pytest.MonkeyPatch, call: int, kind: str) -> None:
    """Make loss or gradient of one step not finite."""
    calls, real = [0], batched_losses.token_losses

    def poisoned(*args: Any) -> Tensor:
        loss = real(*args)
        if not torch.is_grad_enabled():  # a validation
            return loss
        calls[0] += 1
        if calls[0] == call and kind == "gradient":
            loss.register_hook(lambda grad: grad * math.inf)
        return loss * math.nan if calls[0] == call and kind == "loss" else loss

    monkeypatch.setattr(batched_losses, "token_losses", poisoned)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With step and rows in the message, the prompt as it was, and a checkpoint from which the run is the same run."""
    lm = tiny_lm("llama")
    straight = run(lm, learner(lm, "prefix-tuning"), tmp_path / "straight", steps=5, save_every=1)
    mine, after = learner(lm, "prefix-tuning"), dict[int, str]()

    def report(event: Event) -> None:
        if event.kind == "step":
            after[event.step] = prompt_digest(mine.freeze()[0])

    with monkeypatch.context() as patch:
        poison(patch, 3, kind)
        with pytest.raises(NonFiniteLossError) as error:
            run(lm, mine, tmp_path / "run", steps=5, save_every=1, report=report)
    batches = Batches([len(e.ids) for e in task().train], 8, 0)
    picked = [batches.next_batch() for _ in range(3)][2]
    message = str(error.value)
    assert "step 3" in message
    assert task().train[picked[0]].where in message
    assert ("loss nan" in message) == (kind == "loss")
    assert sorted(after) == [1, 2]
    assert prompt_digest(mine.freeze()[0]) == after[2]
    resumed = run(lm, learner(lm, "prefix-tuning"), tmp_path / "run", steps=5, save_every=1, resume=True)
    assert prompt_digest(resumed.prompt) == prompt_digest(straight.prompt)


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    monkeypatch.setattr(
        batched_losses,
        "token_losses",
        lambda lm, prefix_kv, rows, prefix_ids: torch.full((learned_tokens(rows),), math.nan),
    )
    with pytest.raises(NonFiniteLossError, match=r"(?s)step 0: validation loss is not finite"):
        run(lm, learner(lm, "prompt-tuning"), tmp_path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    """Other rows, settings, method or base model; how often it saves or in how many parts it runs does not matter."""
    lm = tiny_lm("llama")
    run(lm, learner(lm, "prompt-tuning"), tmp_path, steps=4, save_every=2)
    own = task()
    others: list[tuple[Any, str, Task, dict[str, Any]]] = [
        (lm, "prompt-tuning", own, {"steps": 4, "lr": 0.5}),
        (lm, "prompt-tuning", own, {"steps": 4, "seed": 1}),
        (lm, "prefix-tuning", own, {"steps": 4}),
        (lm, "prompt-tuning", Task(own.train, own.validation, (), (50, 51), "other data"), {"steps": 4}),
        (lm, "prompt-tuning", replace(own, follow=(50, 52)), {"steps": 4}),
        (lm, "prompt-tuning", replace(own, lead=(3,)), {"steps": 4}),
        (FrozenLM(copy.deepcopy(lm.hf_model).bfloat16(), lm.tokenizer, lm.name), "prompt-tuning", own, {"steps": 4}),
        (tiny_lm("mistral"), "prompt-tuning", own, {"steps": 4}),
    ]
    for model, method, rows, changes in others:
        with pytest.raises(CheckpointError, match="other settings, data or base model"):
            run(model, learner(model, method), tmp_path, rows=rows, resume=True, **changes)
    free: dict[str, Any] = {"save_every": 1, "accumulate": 2, "gradient_checkpointing": True, "graphs": False}
    assert run(lm, learner(lm, "prompt-tuning"), tmp_path, steps=4, resume=True, **free).step == 4


def test_nothing_to_resume(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    with pytest.raises(CheckpointError, match="nothing to resume"):
        run(lm, learner(lm, "prompt-tuning"), tmp_path, resume=True)


def test_signal_handlers_are_given_back(tmp_path: Path) -> None:
    lm, before = tiny_lm("llama"), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    run(lm, learner(lm, "prompt-tuning"), tmp_path, steps=2)
    with pytest.raises(CheckpointError):
        run(lm, learner(lm, "prompt-tuning"), tmp_path, steps=2, resume=True)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    lm = tiny_lm("llama")

    def report(event: Event) -> None:
        if event.kind == "step":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(lm, learner(lm, "prompt-tuning"), tmp_path, report=report)


def test_default_steps(tmp_path: Path) -> None:
    assert [default_steps(rows, 16) for rows in (1, 160, 320, 10_000)] == [100, 100, 200, 600]
    lm = tiny_lm("llama")
    assert TrainConfig().steps is None
    assert run(lm, learner(lm, "prompt-tuning"), tmp_path, rows=Task(answers(3, 0), []), steps=None).step == 100


def no_room_on_the_cpu() -> None:
    torch.empty(2**60)


def no_room_elsewhere() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("fail", [no_room_on_the_cpu, no_room_elsewhere])
def test_out_of_memory(fail: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    monkeypatch.setattr(
        batched_losses, "token_losses", lambda *_: fail() if torch.is_grad_enabled() else torch.ones(len(_[2]) * 4)
    )
    with pytest.raises(TrainError, match=r"(?s)step 1: out of memory.*memory.*--train.accumulate"):
        run(lm, learner(lm, "prompt-tuning"), tmp_path)


def test_other_failures_keep_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    monkeypatch.setattr(batched_losses, "token_losses", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        run(lm, learner(lm, "prompt-tuning"), tmp_path)


def test_a_step_needs_a_row_for_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without rows would not join the others' reduction of gradients, and all would wait for ever."""
    lm = tiny_lm("llama")
    monkeypatch.setattr(train_module.Accelerator, "num_processes", 9)
    with pytest.raises(ConfigError, match=r"(?s)fewer rows than there are processes.*9"):
        run(lm, learner(lm, "prompt-tuning"), tmp_path, batch_size=8)


def test_processes_count_the_start_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first one does: each has its own clock, and they must take the same steps."""

    class Second:
        num_processes, process_index, is_main_process = 2, 1, False

        def __init__(self, **options: Any) -> None: ...

        def reduce(self, tensor: Tensor, how: str) -> Tensor:
            return tensor

    def gathered(mine: list[Any]) -> list[Any]:
        first = [3.0] if isinstance(mine[0], float) else mine
        return [*first, *mine]

    monkeypatch.setattr(train_module, "Accelerator", Second)
    monkeypatch.setattr(train_module, "gather_object", gathered)
    lm = tiny_lm("llama")
    trial = Trial(learner(lm, "prompt-tuning"), [task()], TrainConfig(steps=1, batch_size=4), lm.device)
    trial.state.init_seconds = 7.0
    train_module.train(lm, [trial], tmp_path)
    assert trial.state.init_seconds == 3.0
