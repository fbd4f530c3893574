"""Composable distillation: the teacher's prefixes, the joined student, its gradient, and whole runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt.distillation import build
from softprompt.distillation.config import DistillConfig
from softprompt.distillation.neighbors import EVERY, ComposableLearner, Neighbor, TrainingRows, load_neighbors
from softprompt.distillation.prepare import PreparedDistillation, prepare_distillation
from softprompt.distillation.run import DistillationResult, distill
from softprompt.distillation.teacher import Teacher
from softprompt.editing.compose import concatenate
from softprompt.errors import CheckpointError, ConfigError, StoreError, UnsupportedModelError
from softprompt.formatting.formatted_prompt import opening_ids
from softprompt.methods.initializers import harvest
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts import store
from softprompt.prompts.card import Card, Layout
from softprompt.prompts.forms import EmbeddingPrompt, prompt_digest
from softprompt.settings import resolve_settings
from softprompt.training.events import Event
from tests.cli.conftest import saved_model
from tests.support.cases import random_prompt
from tests.support.rows import write_jsonl
from tests.support.tasks import learner, task
from tests.support.tiny import tiny_lm

TEXT = "Speak as a pirate. Fees are 5. End with Arr!"
SMALL = {
    "study.queries": 24,
    "study.held_out": 6,
    "study.answer_tokens": 6,
    "method.n_tokens": 16,
    "train.steps": 12,
    "train.batch_size": 4,
    "train.eval_rows": 4,
    "fit_steps": 10,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("models") / "base", "llama")


@pytest.fixture
def place(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text and rows, and a saved soft prompt of each form, distilled from another text."""
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    (tmp_path / "policy.md").write_text(TEXT, encoding="utf-8")
    (tmp_path / "tone.md").write_text("Be kind, brief and never rude to a guest.", encoding="utf-8")
    write_jsonl(tmp_path / "rows.jsonl", *({"prompt": f"q {i}?", "completion": f"a {i}"} for i in range(24)))
    for name, method in (("tone", "prefix-tuning"), ("words", "prompt-tuning")):
        run(base, tmp_path, text=str(tmp_path / "tone.md"), name=name, method__name=method)
    return tmp_path


def prepared(base: Path, place: Path, *, resume: bool = False, **changes: Any) -> PreparedDistillation:
    flags = SMALL | {"model": str(base), "name": "policy", "text": str(place / "policy.md")}
    flags |= {"data": str(place / "rows.jsonl")} | {name.replace("__", "."): value for name, value in changes.items()}
    return prepare_distillation(resolve_settings(DistillConfig, flags), resume=resume)


def run(base: Path, place: Path, **changes: Any) -> DistillationResult:
    return distill(prepared(base, place, **changes), load_model(str(base), dtype="float32"))


def losses(lm: FrozenLM, prefix: Prefix) -> torch.Tensor:
    return token_losses(lm, prepare_prefixes(lm, [prefix]), task().train[:6])


@pytest.mark.parametrize("form", ["kv", "embedding"])
def test_the_teacher_reads_the_text_in_its_place(form: str, base: Path, place: Path) -> None:
    """Beside a soft prompt that is a text of its own, it is the teacher of both texts, one after the other."""
    lm = load_model(str(base), dtype="float32")
    given = prepared(base, place)
    teacher = Teacher(lm, given.chunks, given.template)
    other, opening = tuple(lm.encode("Be kind. ")), tuple(opening_ids(lm, given.template))
    kv = form == "kv"
    text, follow = tuple(lm.encode(TEXT)), teacher.prefix(0).follow
    first = harvest(lm, (*opening, *other)) if kv else EmbeddingPrompt(lm.embed(list(other)).float())
    found = Neighbor("other", "", first, is_first=True).before_rows(teacher, 0)
    assert torch.allclose(losses(lm, found), losses(lm, Prefix(None, (*opening, *other, *text), follow)), atol=1e-4)
    last = Neighbor("other", "", first, is_first=False).before_rows(teacher, 0)
    if kv:  # keys and values know nothing of what stands before them
        parts = [harvest(lm, (*opening, *text)), first]
        assert torch.equal(losses(lm, last), losses(lm, Prefix(concatenate(parts, lm), (), follow)))
        alone = losses(lm, Prefix(parts[0], (), follow))
        assert not torch.allclose(losses(lm, last), alone, atol=1e-3)
    else:
        both = Prefix(None, (*opening, *text, *other), follow)
        assert torch.allclose(losses(lm, last), losses(lm, both), atol=1e-4)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning"])
def test_the_gradient_goes_through_the_join(method: str, is_first: bool) -> None:
    """Rotated keys included: along the gradient the loss changes as the gradient says."""
    lm = tiny_lm("llama")
    trained = learner(lm, method)
    form = trained.freeze()[0].form
    neighbor = Neighbor("other", "", random_prompt(lm, form, 4, 3), is_first=is_first)
    rows = task().train[:6]
    both = ComposableLearner(trained, lm, {rows[0].where: neighbor, rows[3].where: neighbor})
    prompts, numbers = both.assign(rows)
    assert numbers == [1, 0, 0, 1, 0, 0] and [prompt.n_tokens for prompt in prompts] == [6, 10]
    frozen = trained.freeze()[0]
    parts = [neighbor.prompt, frozen] if is_first else [frozen, neighbor.prompt]
    for name, tensor in concatenate(parts, lm).tensors().items():
        assert torch.allclose(prompts[1].tensors()[name], tensor, atol=1e-6)

    def loss() -> torch.Tensor:
        return losses(lm, Prefix(both.assign(rows)[0][1])).sum()

    loss().backward()
    parameters = list(trained.parameters())
    gradients = [parameter.grad for parameter in parameters]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    norm = sum(gradient.square().sum() for gradient in gradients if gradient is not None) ** 0.5
    values = []
    for step in (1e-2, -1e-2):
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                assert gradient is not None
                parameter += gradient * step / norm
            values.append(loss().item())
            for parameter, gradient in zip(parameters, gradients, strict=True):
                assert gradient is not None
                parameter -= gradient * step / norm
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(float(norm), rel=2e-2)


def test_a_third_of_the_rows_stand_beside_neighbors(base: Path, place: Path) -> None:
    """Their labels are those of the teacher there; each neighbor in both places."""
    lm, given = load_model(str(base), dtype="float32"), prepared(base, place)
    teacher = Teacher(lm, given.chunks, given.template)
    splits = build.build_dataset(given, teacher, lambda event: None)
    neighbors = load_neighbors(lm, ["tone"], "kv")
    assert [neighbor.is_first for neighbor in neighbors] == [True, False]
    rows = TrainingRows.of(splits, teacher, neighbors, given.settings.study)
    assert len(rows.train) == len(splits.train) + -(-len(splits.train) // EVERY)
    beside = [row for row in rows.train if row.where in rows.neighbor_of]
    assert rows.train[: len(splits.train)] == TrainingRows.of(splits, teacher, [], given.settings.study).train
    assert {row.where.rpartition(" ")[0].rpartition(" ")[2] for row in beside} == {"after", "before"}
    for row in beside:
        assert row.lesson is not None
        prefix = rows.neighbor_of[row.where].before_rows(teacher, 0)
        (wanted,) = teacher.soft_labels_after(prefix, [row], given.settings.study.top_k, 1.0)
        assert torch.allclose(row.lesson.logprobs, wanted.logprobs, atol=1e-4)
    assert len(rows.validation) > len(splits.validation)


@pytest.mark.parametrize(("method", "other"), [("prefix-tuning", "tone"), ("prompt-tuning", "words")])
def test_a_run_learns_beside_others(method: str, other: str, base: Path, place: Path) -> None:
    """It is another prompt than alone, its card names the others, and an interrupted run ends as a whole one."""

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 5:
            signal.raise_signal(signal.SIGINT)

    def ended(
        name: str, report: Any = lambda event: None, *, resume: bool = False, **changes: Any
    ) -> DistillationResult:
        given = prepared(base, place, resume=resume, name=name, method__name=method, on_policy=0.5, **changes)
        return distill(given, load_model(str(base), dtype="float32"), resume=resume, report=report)

    alone, whole = ended("alone"), ended("whole", composable=other)
    assert whole.saved[0][1].data["composable"] == [other] and "composable" not in alone.saved[0][1].data
    ended("two", stop, composable=other)
    with pytest.raises(CheckpointError, match="other settings"):
        ended("two", resume=True)
    resumed = ended("two", resume=True, composable=other)
    digests = [prompt_digest(store.load(found.saved[0][0])[0]) for found in (alone, whole, resumed)]
    assert digests[1] == digests[2] != digests[0]


def test_neighbors_must_be_there_and_of_one_form(base: Path, place: Path) -> None:
    """Which is known before the study, which takes long."""
    lm = load_model(str(base), dtype="float32")
    given = prepared(base, place, composable="nobody")
    with pytest.raises(StoreError):
        distill(given, lm, report=lambda event: pytest.fail(f"{event.kind} came first"))
    with pytest.raises(StoreError):
        load_neighbors(lm, ["nobody"], "kv")
    with pytest.raises(ConfigError, match="of another form"):
        load_neighbors(lm, ["tone", "words"], "kv")


def test_keys_that_cannot_be_moved_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model with learned positions; its input embeddings can be joined."""
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    base = saved_model(tmp_path / "gpt2", "gpt2")
    lm = load_model(str(base), dtype="float32")
    for name, form in (("tone", "kv"), ("words", "embedding")):
        prompt = random_prompt(lm, form, 4, 1)
        store.save(name, prompt, Card.draft(name, prompt, lm.geometry, layout=Layout(), template={}, method={}))
    with pytest.raises(UnsupportedModelError, match="keys"):
        load_neighbors(lm, ["tone"], "kv")
    assert len(load_neighbors(lm, ["words"], "embedding")) == 2
