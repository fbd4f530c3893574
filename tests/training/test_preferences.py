"""Training on pairs: it begins at the reference, tells held-out pairs apart, and is resumed bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt.data.template import Template
from softprompt.data.tokenize import Example
from softprompt.methods.base import Method
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.preference import row_sums
from softprompt.training.batched_losses import trial_losses
from softprompt.training.events import Event
from softprompt.training.loop import train
from softprompt.training.objective_config import ObjectiveConfig
from softprompt.training.preferences import PreferenceObjective
from softprompt.training.reference import BaseReference, StartReference
from softprompt.training.result import Result
from softprompt.training.trial import Task, Trial
from tests.laws.test_law5_resume import STEPS, check_same, stop_after
from tests.support.tasks import END, answers, learner, settings
from tests.support.tiny import tiny_lm

OTHER = (93, 64)  # the rejected answer


def pairs(count: int, seed: int) -> list[Example]:
    """The task's answers against one answer of other tokens."""
    made = []
    for row in answers(count, seed):
        text = row.ids[: row.mask.index(True)]
        mask = (*(False for _ in text), True, True, True)
        made.append(replace(row, rejected=Example((*text, *OTHER, END), mask, row.where)))
    return made


def pair_task(count: int = 40) -> Task:
    return Task(pairs(count, 0), pairs(8, 1000), (), (50, 51), "digest of the data")


def pair_trial(
    lm: FrozenLM, method: Method, reference: str = "start", sft_weight: float = 1.0, **changes: Any
) -> Trial:
    task = pair_task()
    kept = StartReference(lm, method, [task]) if reference == "start" else BaseReference(lm, [Template("text", "{x}")])
    objective = PreferenceObjective(ObjectiveConfig(name="dpo", beta=0.5, sft_weight=sft_weight), kept)
    return Trial(method, [task], settings(**changes), lm.device, objective=objective)


def run(lm: FrozenLM, method: Method, folder: Path, events: list[Event] | None = None, **changes: Any) -> Result:
    report = changes.pop("report", lambda event: None if events is None else events.append(event))
    resume = changes.pop("resume", False)
    (result,) = train(lm, [pair_trial(lm, method, **changes)], folder, resume=resume, report=report)
    return result


@pytest.mark.parametrize("name", ["prompt-tuning", "prefix-tuning", "smop"])
def test_it_learns_what_is_preferred(name: str, tmp_path: Path) -> None:
    lm, events = tiny_lm("llama"), list[Event]()
    result = run(lm, learner(lm, name), tmp_path, events, steps=30, lr=0.1)
    first, *_, last = [event.numbers for event in events if event.kind == "validation"]
    alone = first["validation_loss"] - first["validation_chosen_loss"]
    assert math.isclose(alone, math.log(2), rel_tol=1e-5), "policy and reference begin as one"
    assert (last["validation_accuracy"], last["validation_margin"] > 1) == (1.0, True)
    assert result.history[-1]["validation_accuracy"] == 1.0
    step = next(event.numbers for event in events if event.kind == "step")
    assert {"loss", "accuracy", "margin", "chosen_reward", "rejected_reward"} <= step.keys()


def test_the_weight_of_the_chosen_answers(tmp_path: Path) -> None:
    """The loss is that of plain DPO and the mean loss of a chosen token, without which chosen answers lose."""
    lm, ends = tiny_lm("llama"), list[dict[str, float]]()
    for weight in (0.0, 1.0):
        events = list[Event]()
        run(lm, learner(lm, "prefix-tuning"), tmp_path / str(weight), events, steps=30, lr=0.1, sft_weight=weight)
        first, *_, last = [event.numbers for event in events if event.kind == "validation"]
        ends.append(last)
        if not weight:
            assert math.isclose(first["validation_loss"], math.log(2), rel_tol=1e-5)
            assert "validation_chosen_loss" not in first
    plain, kept = ends
    assert plain["validation_chosen_reward"] < kept["validation_chosen_reward"]
    assert kept["validation_accuracy"] == 1.0
    method, rows = learner(lm, "prefix-tuning"), pair_task().train[:4]
    trial, bare = pair_trial(lm, method), pair_trial(lm, method, sft_weight=0.0)
    (losses,), (alone,) = trial_losses(lm, [(trial, rows)]), trial_losses(lm, [(bare, rows)])
    (chosen,) = trial_losses(lm, [(Trial(method, [pair_task()], settings(), lm.device), rows)])
    counts = torch.tensor([sum(row.mask) for row in rows])
    assert_close(losses - alone, row_sums(chosen, rows) / counts)


def test_the_base_model_as_the_reference(tmp_path: Path) -> None:
    """Then the start has a loss of its own, that of its preferences over the bare model's."""
    lm, events = tiny_lm("llama"), list[Event]()
    run(lm, learner(lm, "prompt-tuning"), tmp_path, events, reference="base", steps=1)
    first = next(event.numbers for event in events if event.kind == "validation")
    assert abs(first["validation_loss"] - math.log(2)) > 1e-3


def test_parts_of_a_step_add_up() -> None:
    """The gradient of a step is the same in one pass and in two."""
    lm = tiny_lm("llama")
    grads = []
    for cuts in (1, 2):
        method = learner(lm, "prefix-tuning")
        trial = pair_trial(lm, method)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(0.1)
        rows = pair_task().train[:6]
        for part in range(cuts):
            (losses,) = trial_losses(lm, [(trial, rows[part::cuts])])
            (losses.sum() / trial.units(rows)).backward()
        grads.append([parameter.grad for parameter in method.parameters()])
    assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-7)


def test_stop_and_resume_at_any_step(tmp_path: Path) -> None:
    """Also where the resumed process begins at another start: the reference is in the checkpoint."""
    lm = tiny_lm("llama")
    changes: dict[str, Any] = {"steps": STEPS, "save_every": STEPS, "lr": 0.05}
    straight = run(lm, learner(lm, "prefix-tuning"), tmp_path / "straight", **changes)
    for stop in (1, 4):
        folder = tmp_path / f"stopped-{stop}"
        assert run(lm, learner(lm, "prefix-tuning"), folder, report=stop_after(stop), **changes).interrupted
        again = learner(lm, "prefix-tuning", seed=77)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.add_(1.0)
        check_same(folder, run(lm, again, folder, resume=True, **changes), tmp_path / "straight", straight)
