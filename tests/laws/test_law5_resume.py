"""Law 5: train(n) equals train(k), stop, resume, train(n - k), bit for bit."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt.files import read_json, read_tensors
from softprompt.methods.registry import method_spec, method_specs
from softprompt.prompts.forms import prompt_digest
from softprompt.training.events import Event
from softprompt.training.result import Result
from tests.support.tasks import learner, run
from tests.support.tiny import FAMILIES, tiny_lm

STEPS = 9


def stop_after(step: int, kind: str = "step", number: signal.Signals = signal.SIGTERM) -> Callable[[Event], None]:
    """A real signal in the middle of the run."""

    def report(event: Event) -> None:
        if event.kind == kind and event.step == step:
            signal.raise_signal(number)

    return report


def final_state(folder: Path) -> tuple[dict[str, Tensor], object]:
    """Everything in the checkpoint of the last step: method, best method, optimiser, random generators."""
    path = folder / f"checkpoint-{STEPS:06d}"
    state: Any = read_json(path / "state.json")
    facts = state["facts"]
    del facts["elapsed"], facts["seconds"], facts["validation_seconds"]  # the only thing that may differ: time
    return read_tensors(path / "state.safetensors"), facts


def check_same(folder: Path, ours: Result, other: Path, theirs: Result) -> None:
    (tensors, facts), (others, other_facts) = final_state(folder), final_state(other)
    assert tensors.keys() == others.keys()
    for part in ("trials.0.learner", "trials.0.best", "trials.0.optimizer.state", "random"):
        assert any(name.startswith(f"state.{part}") for name in tensors), part
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
    assert facts == other_facts
    assert prompt_digest(ours.prompt) == prompt_digest(theirs.prompt)
    assert (ours.step, ours.stopped, ours.validation_loss) == (theirs.step, theirs.stopped, theirs.validation_loss)
    assert ours.history == theirs.history


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("method", method_specs())
def test_stop_and_resume_at_any_step(method: str, optimizer: str, tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    changes: dict[str, Any] = {"steps": STEPS, "save_every": STEPS, "optimizer": optimizer, "weight_decay": 0.01}
    frozen = int(method_spec(method).trains_kv)
    straight = run(lm, learner(lm, method, frozen_tokens=frozen), tmp_path / "straight", **changes)
    for stop in (1, 4, 8):
        folder = tmp_path / f"stopped-{stop}"
        first = run(lm, learner(lm, method, frozen_tokens=frozen), folder, report=stop_after(stop), **changes)
        assert first.interrupted
        assert (first.stopped, first.step) == ("SIGTERM", stop)
        torch.rand(stop)  # another process would have another random state
        again = learner(lm, method, seed=77, frozen_tokens=frozen)  # and another start
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.add_(1.0)
        resumed = run(lm, again, folder, resume=True, **changes)
        assert not resumed.interrupted
        check_same(folder, resumed, tmp_path / "straight", straight)


@pytest.mark.parametrize("kind", ["step", "validation"])
def test_many_stops(kind: str, tmp_path: Path) -> None:
    """Stopped after every step or validation, the run is still the same run."""
    lm = tiny_lm("llama")
    changes: dict[str, Any] = {"steps": STEPS, "save_every": STEPS, "evals": 8, "patience": None}
    straight = run(lm, learner(lm, "prefix-tuning"), tmp_path / "straight", **changes)
    result, folder, resume, tries = None, tmp_path / "stops", False, 0
    while result is None or result.interrupted:
        result = run(
            lm, learner(lm, "prefix-tuning"), folder, resume=resume, report=_stop_once(kind, number=tries), **changes
        )
        resume, tries = True, tries + 1
    assert tries > STEPS // 2
    check_same(folder, result, tmp_path / "straight", straight)


def _stop_once(kind: str, number: int) -> Callable[[Event], None]:
    """Ctrl-C and SIGTERM in turn, at the first event of this kind."""
    sent: list[int] = []

    def report(event: Event) -> None:
        if event.kind == kind and not sent and event.step < STEPS:
            sent.append(event.step)
            signal.raise_signal(signal.SIGINT if number % 2 else signal.SIGTERM)

    return report


def test_early_stopping_is_resumed_too(tmp_path: Path) -> None:
    """Patience counts validations before the stop."""
    lm = tiny_lm("llama")
    changes: dict[str, Any] = {
        "steps": STEPS,
        "save_every": 1,
        "evals": STEPS,
        "patience": 2,
        "lr": 1e-30,
    }  # nothing moves
    straight = run(lm, learner(lm, "prompt-tuning"), tmp_path / "straight", **changes)
    assert straight.stopped == "patience"
    assert straight.step > 1
    folder = tmp_path / "stopped"
    run(lm, learner(lm, "prompt-tuning"), folder, report=stop_after(1), **changes)
    resumed = run(lm, learner(lm, "prompt-tuning"), folder, resume=True, **changes)
    assert (resumed.step, resumed.stopped) == (straight.step, "patience")
    assert prompt_digest(resumed.prompt) == prompt_digest(straight.prompt)
    assert resumed.history == straight.history


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_resumes(family: str, tmp_path: Path) -> None:
    lm = tiny_lm(family)
    changes: dict[str, Any] = {"steps": STEPS, "save_every": STEPS}
    straight = run(lm, learner(lm, "prefix-tuning"), tmp_path / "straight", **changes)
    run(lm, learner(lm, "prefix-tuning"), tmp_path / "stopped", report=stop_after(2), **changes)
    resumed = run(lm, learner(lm, "prefix-tuning", seed=7), tmp_path / "stopped", resume=True, **changes)
    check_same(tmp_path / "stopped", resumed, tmp_path / "straight", straight)
