"""Many trials in the same forward passes: each learns what it learns alone, and the worse half may stop."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import softprompt.training.loop as train_module
from softprompt.errors import NonFiniteLossError
from softprompt.prompts.forms import prompt_digest
from softprompt.training.events import Event
from softprompt.training.loop import train
from softprompt.training.result import Result
from softprompt.training.trial import Task, Trial
from tests.support.tasks import answers, learner, settings, task
from tests.support.tiny import FAMILIES, tiny_lm

# What a trial learns alone and among others differs by the order of sums: relative to its largest number.
TOLERANCE = 2e-4
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("prompt-tuning", {"lr": 0.03, "seed": 1}),
    ("prefix-tuning", {"lr": 0.01, "seed": 2, "batch_size": 3}),
    ("prefix-tuning", {"lr": 0.05, "seed": 2, "weight_decay": 0.1}),
    ("prefix-tuning-mlp", {"lr": 0.01, "steps": 4}),
    ("residual", {"lr": 0.01, "accumulate": 2}),
    ("smop", {"lr": 0.01}),
    ("p-tuning-v2", {"lr": 0.01, "clip": 0.1}),
]


def trials(family: str = "llama", *, only: Sequence[int] = range(len(KINDS)), **changes: Any) -> list[Trial]:
    lm = tiny_lm(family)
    made = []
    for i in only:
        name, own = KINDS[i]
        given = settings(**({"steps": 7, "patience": None} | own | changes))
        made.append(Trial(learner(lm, name, seed=i), [task()], given, lm.device, f"{i} {name}"))
    return made


def run(own: list[Trial], folder: Path, family: str = "llama", **options: Any) -> list[Result]:
    return train(tiny_lm(family), own, folder, **options)


def check_same(one: Result, other: Result) -> None:
    assert (one.step, one.stopped) == (other.step, other.stopped)
    for mine, theirs in zip(one.prompts, other.prompts, strict=True):
        for name, tensor in mine.tensors().items():
            scale = tensor.abs().max().item()
            assert_close(theirs.tensors()[name], tensor, rtol=0, atol=TOLERANCE * scale)
    for mine, theirs in zip(one.history, other.history, strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_alone_and_among_others(family: str, tmp_path: Path) -> None:
    """Different methods, lengths of run, batch sizes, seeds and optimiser settings."""
    together = run(trials(family), tmp_path / "all", family)
    for i, result in enumerate(together):
        (alone,) = run(trials(family, only=[i]), tmp_path / str(i), family)
        check_same(alone, result)
    assert len({prompt_digest(result.prompt) for result in together}) == len(together)


def test_in_groups_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many rows for one forward pass: trials are run group by group."""
    together = run(trials(), tmp_path / "all")
    monkeypatch.setattr(train_module, "TOKENS_AT_ONCE", 100)
    for one, other in zip(together, run(trials(), tmp_path / "groups"), strict=True):
        check_same(one, other)


def test_every_event_says_whose_it_is(tmp_path: Path) -> None:
    events: list[Event] = []
    own = trials(only=[0, 3])
    run(own, tmp_path, report=events.append)
    steps = {c.name: [e.step for e in events if e.kind == "step" and e.trial == c.name] for c in own}
    assert steps == {"0 prompt-tuning": list(range(1, 8)), "3 prefix-tuning-mlp": list(range(1, 5))}
    assert [e.trial for e in events if e.kind == "end"] == [c.name for c in own]


def test_the_worse_half_stops_at_a_rung(tmp_path: Path) -> None:
    """At half of the run two of four stop, those with the higher validation loss; the others go on as they would."""
    rates = (1e-5, 0.05, 1e-4, 0.1)
    lm = tiny_lm("llama")

    def four() -> list[Trial]:
        given = [settings(steps=8, patience=None, lr=lr) for lr in rates]
        return [
            Trial(learner(lm, "prefix-tuning"), [task()], own, lm.device, f"lr={lr}")
            for own, lr in zip(given, rates, strict=True)
        ]

    results = train(lm, four(), tmp_path / "halved", rungs=(0.5,))
    assert [(r.step, r.stopped) for r in results] == [(4, "halving"), (8, "steps"), (4, "halving"), (8, "steps")]
    assert all(r.history[-1]["step"] == r.step for r in results), "judged where it stopped"
    whole = train(lm, four(), tmp_path / "whole")
    for i in (1, 3):
        check_same(whole[i], replace(results[i], history=[h for h in results[i].history if h in results[i].history]))
    one = train(lm, four(), tmp_path / "twice", rungs=(0.25, 0.5, 0.75))
    assert sorted(r.step for r in one) == [2, 2, 4, 8], "one always stays"


@pytest.mark.parametrize("stop", [2, 5])
def test_a_population_is_resumed(stop: int, tmp_path: Path) -> None:
    """Bit by bit, also after a rung."""
    own = [0, 1, 2, 4, 6]
    straight = run(trials(only=own), tmp_path / "straight", rungs=(0.5,))
    sent: list[int] = []

    def stop_once(event: Event) -> None:
        if event.kind == "step" and event.step == stop and not sent:
            sent.append(stop)
            signal.raise_signal(signal.SIGTERM)

    first = run(trials(only=own), tmp_path / "stopped", rungs=(0.5,), report=stop_once)
    assert any(result.interrupted for result in first)
    resumed = run(trials(only=own), tmp_path / "stopped", rungs=(0.5,), resume=True)
    assert [prompt_digest(r.prompt) for r in resumed] == [prompt_digest(r.prompt) for r in straight]
    assert [(r.step, r.stopped, r.history) for r in resumed] == [(r.step, r.stopped, r.history) for r in straight]


def test_one_that_diverges_stops_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others do not notice; alone it is an error."""
    wild = Task(answers(40, 0), answers(8, 1000), (), (50, 51), "wild")
    lm, real = tiny_lm("llama"), train_module.trial_losses

    def poisoned(lm: Any, shares: Any, graphs: Any) -> list[Tensor]:
        found = real(lm, shares, graphs)
        bad = [c.tasks[0].digest == "wild" and c.state.step == 3 and torch.is_grad_enabled() for c, _ in shares]
        return [loss * math.nan if is_bad else loss for loss, is_bad in zip(found, bad, strict=True)]

    monkeypatch.setattr(train_module, "trial_losses", poisoned)

    def odd() -> Trial:
        return Trial(learner(lm, "prompt-tuning"), [wild], settings(steps=7, patience=None), lm.device, "odd")

    calm = trials(only=[1, 2])
    results = train(lm, [calm[0], odd(), calm[1]], tmp_path / "mixed")
    assert [(r.step, r.stopped) for r in results] == [(7, "steps"), (3, "not finite"), (7, "steps")]
    monkeypatch.undo()
    for one, other in zip(run(trials(only=[1, 2]), tmp_path / "calm"), results[::2], strict=True):
        check_same(one, other)
    monkeypatch.setattr(train_module, "trial_losses", poisoned)
    with pytest.raises(NonFiniteLossError, match="step 4 of odd"):
        train(lm, [odd()], tmp_path / "alone")


def test_candidates_may_have_tasks_of_their_own(tmp_path: Path) -> None:
    """Another text around the prompt, and other rows."""
    lm = tiny_lm("llama")
    other = Task(answers(24, 77), answers(8, 900), (7,), (), "other")

    def pair() -> list[Trial]:
        both = [task(), other]
        return [Trial(learner(lm, "prompt-tuning"), [t], settings(steps=4), lm.device, t.digest) for t in both]

    together = train(lm, pair(), tmp_path / "both")
    for i, result in enumerate(together):
        (alone,) = train(lm, [pair()[i]], tmp_path / str(i))
        check_same(alone, result)
