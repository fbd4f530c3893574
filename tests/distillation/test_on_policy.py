"""Own answers of a soft prompt as rows: drawn behind the live prompt and labeled by the teacher."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt.distillation.build import build_dataset
from softprompt.distillation.neighbors import TrainingRows
from softprompt.distillation.prepare import PreparedDistillation, prepare_distillation
from softprompt.distillation.run import _own_answers, _trial, distill
from softprompt.distillation.teacher import Teacher
from softprompt.formatting.context import end_ids
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts import store
from softprompt.prompts.forms import prompt_digest
from softprompt.training.events import Event
from softprompt.training.trial import Trial
from tests.distillation.test_run import base, place, settings

__all__ = ["base", "place"]  # fixtures


def made(base: Path, place: Path, **changes: Any) -> tuple[PreparedDistillation, FrozenLM, Teacher, Trial]:
    prepared = prepare_distillation(settings(base, place, method__name="prefix-tuning", on_policy=0.25, **changes))
    lm = load_model(str(base), dtype="float32")
    teacher = Teacher(lm, prepared.chunks, prepared.template)
    splits = build_dataset(prepared, teacher, lambda event: None)
    rows, own = TrainingRows.of(splits, teacher, [], prepared.settings.study), _own_answers(prepared, teacher, splits)
    trial = _trial(prepared, lm, tuple(lm.encode(prepared.text)), 16, None, rows, own)
    return prepared, lm, teacher, trial


def test_rows_of_the_last_part_have_own_answers(base: Path, place: Path) -> None:
    prepared, lm, teacher, trial = made(base, place, study__answer_temperature=0.0)
    assert trial.rewrite is not None
    rows = list(trial.tasks[0].train[:3])
    assert trial.rewrite(trial, rows, 0.7) == rows
    found = trial.rewrite(trial, rows, 0.75)
    (prompt,) = trial.learner.freeze()
    with torch.no_grad():
        prefixes = prepare_prefixes(lm, [Prefix(prompt, trial.tasks[0].lead, trial.tasks[0].follow)])
    queries = [list(row.ids[: row.mask.index(True)]) for row in rows]
    ends = end_ids(lm, prepared.template)
    answers = decode_batch(lm, prefixes, queries, [0] * 3, Sampling(6), end_ids=[ends] * 3)
    for row, query, answer, given in zip(found, queries, answers, rows, strict=True):
        own = [*answer.ids, *([answer.end] if answer.end is not None else [])]
        assert list(row.ids) == [*query, *own] and sum(row.mask) == len(own) and row.where == given.where
        (labels,) = teacher.soft_labels(0, [row], prepared.settings.study.top_k, prepared.settings.study.temperature)
        assert row.lesson is not None and torch.equal(row.lesson.ids, labels.ids)
        assert_close(row.lesson.logprobs, labels.logprobs, rtol=1e-4, atol=1e-4)


def test_drawn_answers_change_with_the_step_alone(base: Path, place: Path) -> None:
    _, _, _, trial = made(base, place, study__answer_temperature=1.5)
    assert trial.rewrite is not None
    rows = list(trial.tasks[0].train[:4])
    first, again = (trial.rewrite(trial, rows, 1.0) for _ in range(2))
    assert [row.ids for row in first] == [row.ids for row in again]
    trial.state.step += 1
    assert [row.ids for row in trial.rewrite(trial, rows, 1.0)] != [row.ids for row in first]


@pytest.mark.parametrize("stop_at", [3, 10])
def test_a_stopped_run_goes_on_bit_for_bit(stop_at: int, base: Path, place: Path) -> None:
    """Stopped before the last part begins, and inside it."""
    lm = load_model(str(base), dtype="float32")

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == stop_at:
            signal.raise_signal(signal.SIGTERM)

    changes: dict[str, Any] = {"on_policy": 0.4, "method__name": "prefix-tuning", "fit_steps": 3}
    distill(prepare_distillation(settings(base, place, **changes, name="straight")), lm)
    distill(prepare_distillation(settings(base, place, **changes)), lm, report=stop)
    distill(prepare_distillation(settings(base, place, **changes), resume=True), lm, resume=True)
    straight, resumed = (store.load(name, lm.geometry)[0] for name in ("straight", "policy"))
    assert prompt_digest(straight) == prompt_digest(resumed)
    plain = settings(base, place, **(changes | {"on_policy": 0.0}), name="plain")
    distill(prepare_distillation(plain), lm)
    assert prompt_digest(store.load("plain", lm.geometry)[0]) != prompt_digest(straight)
