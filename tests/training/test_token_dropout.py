"""Dropout of virtual tokens: which are hidden, that the loss does not see them, that resumed runs hide the same."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softprompt.data.tokenize import Example
from softprompt.errors import UnsupportedModelError
from softprompt.prompts.forms import prompt_digest
from softprompt.training.batched_losses import trial_losses, validation_losses
from softprompt.training.config import TrainConfig
from softprompt.training.events import Event
from softprompt.training.loop import train
from softprompt.training.token_dropout import TokenDropout
from softprompt.training.trial import Trial
from tests.support.tasks import learner, task
from tests.support.tiny import DEVICE, tiny_lm, tiny_seq2seq


def trial_of(method: str, share: float) -> Trial:
    settings = TrainConfig(steps=6, lr=1e-2, token_dropout=share, batch_size=2, evals=2)
    return Trial(learner(tiny_lm("llama"), method), [task()], settings, torch.device(DEVICE))


@pytest.mark.parametrize(("share", "n_tokens", "blocks"), [(0.25, 9, 4), (0.1, 33, 11), (0.01, 5, 4), (0.9, 1, 0)])
def test_blocks_have_each_token_but_the_first_once(share: float, n_tokens: int, blocks: int) -> None:
    dropout = TokenDropout(share, n_tokens, seed=0)
    assert len(dropout.blocks) == blocks
    assert [i for first, last in dropout.blocks for i in range(first, last)] == list(range(1, n_tokens))
    rows = task().train
    hidden = Counter(row.masked_span for step in range(400) for row in dropout.hide(rows, step)[:1])
    assert set(hidden) == (set(dropout.blocks) or {(0, 0)})
    assert min(hidden.values()) > 400 / max(1, blocks) / 2


def test_a_row_that_is_hidden_from_itself_stays_so() -> None:
    rows = [replace(row, masked_span=(2, 3)) for row in task().train]
    assert TokenDropout(0.5, 9, seed=0).hide(rows, 1) == rows


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning"])
def test_hidden_tokens_have_no_effect_and_no_gradient(method: str) -> None:
    """In a step; validations see the whole prompt."""
    lm, trial = tiny_lm("llama"), trial_of(method, 0.5)
    rows = trial.next_rows(0.0)
    first, last = rows[0].masked_span
    assert first < last and {row.masked_span for row in rows} == {(first, last)}
    (losses,) = trial_losses(lm, [(trial, rows)])
    losses.mean().backward()
    whole = validation_losses(lm, trial)
    with torch.no_grad():
        for parameter in trial.learner.parameters():
            assert parameter.grad is not None
            tokens = parameter.grad.movedim(-2, 0)
            assert tokens[first:last].abs().max() == 0 and tokens[:first].abs().max() > 0
            parameter[..., first:last, :] += 3
    (changed,) = trial_losses(lm, [(trial, rows)])
    torch.testing.assert_close(changed, losses)
    assert validation_losses(lm, trial)[0] != pytest.approx(whole[0], abs=1e-3)


def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 3:
            signal.raise_signal(signal.SIGINT)

    lm = tiny_lm("llama")
    (whole,) = train(lm, [trial_of("prefix-tuning", 0.25)], tmp_path / "whole")
    (other,) = train(lm, [trial_of("prefix-tuning", 0.0)], tmp_path / "other")
    train(lm, [trial_of("prefix-tuning", 0.25)], tmp_path / "two", report=stop)
    (resumed,) = train(lm, [trial_of("prefix-tuning", 0.25)], tmp_path / "two", resume=True)
    assert prompt_digest(resumed.prompt) == prompt_digest(whole.prompt) != prompt_digest(other.prompt)


def test_a_model_that_cannot_hide_tokens_refuses(tmp_path: Path) -> None:
    lm = tiny_seq2seq()
    settings = TrainConfig(steps=2, token_dropout=0.25)
    trial = Trial(learner(lm, "prompt-tuning"), [task()], settings, torch.device(DEVICE))
    with pytest.raises(UnsupportedModelError, match="cannot hide virtual tokens") as caught:
        train(lm, [trial], tmp_path)
    assert "token_dropout" in str(caught.value)


def test_answers_that_a_run_draws_itself_are_drawn_behind_the_whole_prompt() -> None:
    """Rows are rewritten first, and hidden from afterwards."""
    settings, seen = TrainConfig(steps=6, token_dropout=0.5, batch_size=2), list[Example]()

    def rewrite(trial: Trial, rows: Sequence[Example], progress: float) -> list[Example]:
        seen.extend(rows)
        return list(rows)

    made = learner(tiny_lm("llama"), "prefix-tuning")
    rows = Trial(made, [task()], settings, torch.device(DEVICE), rewrite=rewrite).next_rows(0.0)
    assert {row.masked_span for row in seen} == {(0, 0)} and (0, 0) not in {row.masked_span for row in rows}
