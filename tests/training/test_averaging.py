"""The moving average of a prompt: its arithmetic, and that it is kept where it validates better."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from softprompt.errors import ConfigError
from softprompt.prompts.forms import prompt_digest
from softprompt.training.averaging import MovingAverage
from softprompt.training.config import TrainConfig, resolve
from softprompt.training.events import Event
from softprompt.training.loop import train
from softprompt.training.trial import Trial
from tests.support.tasks import learner, run, task
from tests.support.tiny import DEVICE, tiny_lm
from tests.training.test_loop import validation_loss


def test_it_is_the_weighted_mean_of_the_steps() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    average = MovingAverage([parameter], 0.5)
    expected = torch.zeros(3)
    for step in range(1, 30):
        with torch.no_grad():
            parameter.copy_(torch.full((3,), float(step**2)))
        average.update()
        decay = min(0.5, step / (step + 9))
        expected = decay * expected + (1 - decay) * step**2
    with average.applied():
        torch.testing.assert_close(parameter.detach(), expected)
    assert parameter.tolist() == [29.0**2] * 3


def test_its_state_is_all_that_changes() -> None:
    parameter = nn.Parameter(torch.arange(4.0))
    first = MovingAverage([parameter], 0.9)
    with torch.no_grad():
        parameter.mul_(3)
    first.update()
    second = MovingAverage([parameter], 0.9)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        parameter.add_(1)
    for average in (first, second):
        average.update()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


@pytest.mark.parametrize("lr", [2.0, 1e-3])
def test_the_better_one_is_kept(lr: float, tmp_path: Path) -> None:
    """Behind steps that are too large the average is better, behind small ones that still improve it is worse."""
    lm, is_average = tiny_lm("llama"), list[bool]()

    def compare(trial: Trial) -> None:
        assert trial.average is not None
        current = [parameter.detach().clone() for parameter in trial.learner.parameters()]
        with trial.average.applied():
            averaged = [parameter.detach().clone() for parameter in trial.learner.parameters()]
            average_loss = validation_loss(trial.learner.freeze()[0], task().validation)
        assert trial.latest_loss <= average_loss + 1e-4
        if trial.state.step:
            is_average.append(all(map(torch.equal, current, averaged)))

    made = learner(lm, "prefix-tuning")
    settings = TrainConfig(steps=60, lr=lr, average=0.8, evals=12, batch_size=2, patience=None, schedule="constant")
    trial = Trial(made, [task()], settings, torch.device(DEVICE))
    (result,) = train(lm, [trial], tmp_path, on_validation=compare)
    assert result.validation_loss is not None
    assert validation_loss(result.prompt, task().validation) == pytest.approx(result.validation_loss, rel=1e-4)
    assert any(is_average) if lr > 1 else not any(is_average)


def test_without_validation_rows_the_average_is_the_result(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    plain, averaged = (
        run(lm, learner(lm, "prefix-tuning"), tmp_path / str(decay), steps=6, average=decay, rows=task(validation=0))
        for decay in (0.0, 0.9)
    )
    assert prompt_digest(plain.prompt) != prompt_digest(averaged.prompt)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    lm = tiny_lm("llama")

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 4:
            signal.raise_signal(signal.SIGTERM)

    changes = {"steps": 9, "average": 0.7, "evals": 3, "patience": None}
    straight = run(lm, learner(lm, "prefix-tuning"), tmp_path / "straight", **changes)
    run(lm, learner(lm, "prefix-tuning"), tmp_path / "stopped", report=stop, **changes)
    resumed = run(lm, learner(lm, "prefix-tuning"), tmp_path / "stopped", resume=True, **changes)
    assert prompt_digest(resumed.prompt) == prompt_digest(straight.prompt)
    assert resumed.history == straight.history


def test_runs_without_an_average_have_the_identity_of_the_last_release() -> None:
    assert "average" not in TrainConfig().legacy_dump(set())
    assert TrainConfig(average=0.9).legacy_dump(set())["average"] == 0.9


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_what_is_no_decay(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"train\.average"):
        resolve({"train.average": decay})
