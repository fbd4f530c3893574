"""Several tasks in one run: a prompt for each, shared or its own; multitask prompt tuning, taught and adapted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div
from torch.testing import assert_close

from softprompt.data.splits import load_rows
from softprompt.errors import ConfigError, StoreError
from softprompt.evaluation.evaluate import evaluate
from softprompt.inference.generate import load_prompts
from softprompt.objectives.chunked import divergences
from softprompt.objectives.next_token import distilled_losses, token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts import store
from softprompt.prompts.forms import EmbeddingPrompt, prompt_digest
from softprompt.training.batched_losses import trial_losses
from softprompt.training.config import Config
from softprompt.training.run import fit, prepare
from softprompt.training.run_log import read_log
from softprompt.training.trial import Task, Trial
from tests.laws.oracle import plain_logits
from tests.support.cases import random_prompt
from tests.support.rows import write_jsonl
from tests.support.saved import save_tiny, settings
from tests.support.shell import done, refused
from tests.support.tasks import answers, learner
from tests.support.tasks import settings as train_settings
from tests.support.tiny import tiny_lm


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    return tmp_path / "prompts"


def two_tasks(base: Path, folder: Path, **changes: Any) -> Config:
    """Rows of labels and rows of questions, each with its template."""
    settings(base, folder)
    sums = folder / "sums"
    if not sums.exists():
        sums.mkdir()
        write_jsonl(sums / "train.jsonl", *({"prompt": f"{i}+1", "completion": "x"} for i in range(12)))
        write_jsonl(sums / "validation.jsonl", *({"prompt": f"{i}+2", "completion": "x"} for i in range(4)))
    given: dict[str, Any] = {"data": {"parity": str(folder / "data"), "sums": str(sums)}, "name": "all"}
    given |= {"template": {"parity": "Row: {text}\\nLabel:", "sums": "{prompt}="}, "train__temperature": 2.0}
    return settings(base, folder, **(given | changes))


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning", "multitask"])
def test_each_task_gets_its_artifact(method: str, base: Path, tmp_path: Path, home: Path) -> None:
    lm = tiny_lm()
    config = two_tasks(base, tmp_path, method__name=method, train__steps=30, train__lr=0.3, train__patience=None)
    outcome = fit(prepare(config), lm)
    names = ["all.parity", "all.sums", *(["all.shared"] if method == "multitask" else [])]
    assert [folder.name for folder, _ in outcome.saved] == names
    formatted_prompts = load_prompts(lm, names[:2])
    assert [s.template.text for s in formatted_prompts.values()] == ["Row: {text}\nLabel:", "{prompt}="]
    own = {name: prompt_digest(store.load(name, lm.geometry)[0]) for name in names}
    assert len(set(own.values())) == (3 if method == "multitask" else 1)
    cards = {name: store.load_card(home / name) for name in names}
    assert (cards["all.parity"].labels, cards["all.sums"].labels) == (("even", "odd"), ())
    assert cards["all.parity"].data["train_rows"] == 24 and cards["all.sums"].data["train_rows"] == 12
    lines: list[Any] = read_log(home / ".runs" / "all" / "metrics.jsonl")
    events = [event for event in lines if event["event"] == "validation"]
    for event in events:
        each = [event["validation_loss/parity"], event["validation_loss/sums"]]
        assert event["validation_loss"] == pytest.approx(sum(each) / 2)
    assert events[-1]["best"] < events[0]["validation_loss"] * 0.7, "it learns"
    rows = load_rows(str(tmp_path / "data" / "validation.jsonl"))
    assert evaluate(lm, formatted_prompts["all.parity"], rows, labels=("even", "odd")).rows == 8


def test_a_task_is_adapted_from_the_shared_prompt(base: Path, tmp_path: Path, home: Path) -> None:
    """It starts exactly there, and saves a prompt for the new task and another shared one."""
    lm = tiny_lm()
    fit(prepare(two_tasks(base, tmp_path, method__name="multitask")), lm)
    shared, _ = store.load("all.shared", lm.geometry)
    more = {"method__name": "multitask", "method__init": "prompt", "method__init_from": "all.shared"}
    outcome = fit(prepare(settings(base, tmp_path, name="new", **more, train__lr=1e-30, train__warmup=0.0)), lm)
    assert [folder.name for folder, _ in outcome.saved] == ["new", "new.shared"]
    assert_close(outcome.result.prompts[0].tensors(), shared.tensors())


def test_names_are_checked_before_anything(base: Path, tmp_path: Path, home: Path) -> None:
    config = two_tasks(base, tmp_path)
    (home / "all.sums").mkdir(parents=True)
    (home / "all.sums" / "card.json").write_text("{}")
    with pytest.raises(StoreError, match=r"all\.sums"):
        prepare(config)
    with pytest.raises(ConfigError, match="not a usable name for a task"):
        prepare(two_tasks(base, tmp_path, data={"A b": "x"}))


def test_on_the_command_line(base: Path, tmp_path: Path, home: Path) -> None:
    two_tasks(base, tmp_path)
    words = ["train", "--model", base, "--data", f"parity={tmp_path / 'data'}", "--data", f"sums={tmp_path / 'sums'}"]
    words += ["--name", "cli", "--no-chat", "--steps", 2, "--n-tokens", 4, "--recipe", "fixed"]
    shown = done(*words, "--template.parity", "Row: {text}", SOFTPROMPT_HOME=str(home)).stdout
    assert "data        parity: 24 rows" in shown and "data        sums: 12 rows" in shown
    assert f"saved       {home / 'cli.parity'}, {home / 'cli.sums'}" in shown
    assert "softprompt eval cli.sums --data" in shown
    assert "has no name" in str(refused("train", "--data", "a=x", "--data", "y", "--name", "z"))
    assert "same name" in str(refused("train", "--data", "a=x", "--data", "a=y", "--name", "z"))


def test_teachers(base: Path, tmp_path: Path) -> None:
    """One for each task, by name; a wrong number of them is refused."""
    lm = tiny_lm()
    for name, own in (("t1", str(tmp_path / "data")), ("t2", str(tmp_path / "sums"))):
        two_tasks(base, tmp_path)
        fit(prepare(settings(base, tmp_path, name=name, data=own, template=None, chat=False)), lm)
    taught = two_tasks(base, tmp_path, method__name="multitask", method__teachers="t1,t2", name="taught")
    assert fit(prepare(taught), lm).result.step == 6
    with pytest.raises(ConfigError, match="each task needs a teacher"):
        fit(prepare(two_tasks(base, tmp_path, method__name="multitask", method__teachers="t1", name="few")), lm)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_distilled_loss(weight: float) -> None:
    """Cross entropy plus the weighted divergence of the plain concatenation's distributions, and its gradient."""
    lm, rows = tiny_lm(), answers(5, 3)
    student, teacher = random_prompt(lm, "embedding", 4, 1, grad=True), random_prompt(lm, "kv", 6, 2)
    plain = random_prompt(lm, "embedding", 4, 1, grad=True)
    own, taught = prepare_prefixes(lm, [Prefix(student)]), prepare_prefixes(lm, [Prefix(teacher)])
    ours = distilled_losses(lm, own, taught, rows, [0] * 5, [0] * 5, weight)
    wanted = []
    for row in rows:
        student_TV, teacher_TV = (torch.log_softmax(plain_logits(lm, Prefix(p), row.ids), -1) for p in (plain, teacher))
        apart = kl_div(student_TV, teacher_TV.detach(), reduction="none", log_target=True).sum(-1)
        learned = [t for t, on in enumerate(row.mask) if on]
        wanted += [-student_TV[t - 1, row.ids[t]] + weight * apart[t - 1] for t in learned]
    assert_close(ours, torch.stack(wanted), rtol=1e-4, atol=1e-4)
    ours.sum().backward()
    torch.stack(wanted).sum().backward()
    assert isinstance(student, EmbeddingPrompt) and isinstance(plain, EmbeddingPrompt)
    assert student.embeddings.grad is not None and plain.embeddings.grad is not None
    assert_close(student.embeddings.grad, plain.embeddings.grad, rtol=1e-3, atol=1e-4)


def test_a_candidate_is_judged_without_its_teacher() -> None:
    lm = tiny_lm()
    rows = Task(answers(9, 0), answers(4, 90), digest="d")
    teacher = random_prompt(lm, "kv", 3, 5)
    one = Trial(learner(lm, "prompt-tuning"), [rows], train_settings(distill=3.0), lm.device, "", [teacher])
    (taught,) = trial_losses(lm, [(one, rows.train)])
    with torch.no_grad():
        (judged,) = trial_losses(lm, [(one, rows.train)])
        prefixes, prefix_ids = one.prefixes(rows.train)
        assert_close(judged, token_losses(lm, prepare_prefixes(lm, prefixes), rows.train, prefix_ids))
    assert (taught - judged).min() >= -1e-5 and (taught - judged).max() > 0.1


def test_divergence_of_itself_is_zero() -> None:
    lm = tiny_lm()
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    assert_close(divergences(states, states, lm.logits), torch.zeros(5), rtol=0, atol=1e-5)
    assert divergences(states, states.flip(0), lm.logits, chunk=2).min() > -1e-6
