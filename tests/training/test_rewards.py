"""Training by rewards: the reward rises, every answer has a seed of its own, and the sampler is what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt.data.objective_rows import encode_prompts
from softprompt.data.parsing import parse_rows
from softprompt.data.read_options import ReadOptions
from softprompt.data.template import Template
from softprompt.data.tokenize import Example
from softprompt.errors import ConfigError, TrainError, UnsupportedModelError
from softprompt.inference.answer import Answer
from softprompt.methods.base import Method
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training import rewards
from softprompt.training.batched_losses import trial_losses
from softprompt.training.events import Event
from softprompt.training.loop import train
from softprompt.training.objective_config import ObjectiveConfig
from softprompt.training.reference import StartReference
from softprompt.training.result import Result
from softprompt.training.reward_function import RewardFunction
from softprompt.training.rewards import RewardObjective, answered
from softprompt.training.trial import Task, Trial
from tests.laws.oracle import plain_logits
from tests.laws.test_law5_resume import STEPS, check_same, stop_after
from tests.support.tasks import learner, settings
from tests.support.tiny import tiny_lm, tiny_tokenizer

TEMPLATE = Template("text", "{prompt}")
ASCII = """
def plain(prompts, completions, rows):
    assert prompts[0].startswith("word") and rows[0]["number"] in range(100)
    return [sum(c.isascii() for c in text) / 3 for text in completions]
"""


@pytest.fixture
def reward(tmp_path: Path) -> RewardFunction:
    """The share of ASCII in an answer of three bytes."""
    path = tmp_path / "rule.py"
    path.write_text(ASCII)
    return RewardFunction(f"{path}:plain")


def prompts(count: int, start: int = 0) -> list[Example]:
    rows = [(f"f.jsonl:{i}", {"prompt": f"word {i}", "number": i}) for i in range(start, start + count)]
    return encode_prompts(parse_rows(rows, options=ReadOptions(prompts=True)), TEMPLATE, tiny_tokenizer())


def rewarded(lm: FrozenLM, method: Method, reward: RewardFunction, beta: float = 0.01, **changes: Any) -> Trial:
    task = Task(prompts(16), prompts(4, 50), (), (50, 51), "digest of the data")
    config = ObjectiveConfig(name="grpo", reward=reward.name, beta=beta, group_size=6, max_new_tokens=3)
    objective = RewardObjective(config, StartReference(lm, method, [task]), reward, [TEMPLATE])
    return Trial(method, [task], settings(**{"batch_size": 4, "lr": 0.05} | changes), lm.device, objective=objective)


def run(lm: FrozenLM, trial: Trial, folder: Path, **options: Any) -> Result:
    (result,) = train(lm, [trial], folder, **options)
    return result


@torch.no_grad()
def chance_of_ascii(lm: FrozenLM, trial: Trial) -> float:
    """The probability of an ASCII byte at the start of an answer, from plain passes."""
    texts = [str(lm.tokenizer.decode([token])) for token in range(lm.geometry.vocab)]
    good = [token for token, text in enumerate(texts) if text and text.isascii()]
    rows = trial.tasks[0].validation
    prefixes, numbers = trial.prefixes(rows)
    logits = [plain_logits(lm, prefixes[n], row.ids)[-1] for n, row in zip(numbers, rows, strict=True)]
    return torch.stack(logits).softmax(-1)[:, good].sum(-1).mean().item()


def test_what_is_rewarded_becomes_likelier(reward: RewardFunction, tmp_path: Path) -> None:
    lm, events, chances = tiny_lm("llama"), list[Event](), list[float]()
    trial = rewarded(lm, learner(lm, "prompt-tuning"), reward, steps=25, lr=0.1, batch_size=16, patience=None)

    def report(event: Event) -> None:
        events.append(event)
        if event.kind == "step" and event.step in (1, 25):
            chances.append(chance_of_ascii(lm, trial))

    result = run(lm, trial, tmp_path, report=report)
    steps = [event.numbers for event in events if event.kind == "step"]
    validations = [event.numbers for event in events if event.kind == "validation"]
    assert chances[1] > chances[0] + 0.01, chances
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6) and steps[-1]["kl"] > steps[0]["kl"]
    assert {"reward", "reward_std", "answer_tokens", "cut_off"} <= steps[0].keys()
    assert all(v["validation_loss"] == -v["validation_reward"] for v in validations)
    assert result.validation_loss == min(v["validation_loss"] for v in validations)


def test_answers_depend_on_run_step_row_and_number_alone(reward: RewardFunction) -> None:
    """A step in one part or in two draws the same answers, with the same gradient."""
    lm, grads, means = tiny_lm("llama"), list[torch.Tensor](), list[float]()
    for cuts in (1, 2):
        method = learner(lm, "prefix-tuning")
        trial = rewarded(lm, method, reward)
        rows = trial.tasks[0].train[:4]
        for part in range(cuts):
            (losses,) = trial_losses(lm, [(trial, rows[part::cuts])])
            (losses.sum() / trial.units(rows)).backward()
        grads.append(
            torch.cat([parameter.grad.flatten() for parameter in method.parameters() if parameter.grad is not None])
        )
        means.append(trial.noted()["reward"])
    assert means[0] == pytest.approx(means[1]) and grads[0].norm() > 1e-3
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)
    other = rewarded(lm, learner(lm, "prefix-tuning"), reward)
    other.state.step = 1
    trial_losses(lm, [(other, other.tasks[0].train[:4])])
    assert other.noted()["reward"] != means[0]


def test_what_is_drawn_is_what_is_trained(reward: RewardFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler's log-probabilities are those of the training pass on this model; others are refused."""
    lm = tiny_lm("qwen3")  # with a sliding window
    trial = rewarded(lm, learner(lm, "prefix-tuning"), reward)
    seen = list[float]()
    plain = rewards._SeenLogits.difference
    monkeypatch.setattr(rewards._SeenLogits, "difference", lambda *of: seen.append(plain(*of)) or seen[-1])
    trial_losses(lm, [(trial, trial.tasks[0].train[:4])])
    trial_losses(lm, [(trial, trial.tasks[0].train[:4])])
    assert len(seen) == 1 and seen[0] < 1e-5, "compared once, on the first step"
    add = rewards._SeenLogits.add
    monkeypatch.setattr(rewards._SeenLogits, "add", lambda self, rows, logits: add(self, rows, logits * 1.1))
    other = rewarded(lm, learner(lm, "prefix-tuning"), reward)
    with pytest.raises(UnsupportedModelError, match="drawn by other probabilities"):
        trial_losses(lm, [(other, other.tasks[0].train[:4])])


def test_the_end_of_an_answer_is_learned_where_it_was_drawn() -> None:
    (row,) = prompts(1)
    ended, cut = answered(row, Answer("ab", [70, 71], "stop", 2)), answered(row, Answer("ab", [70, 71], "length"))
    assert ended.ids == (*row.ids, 70, 71, 2) and cut.ids == (*row.ids, 70, 71)
    assert sum(ended.mask) == 3 and sum(cut.mask) == 2


def test_stop_and_resume(reward: RewardFunction, tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    changes: dict[str, Any] = {"steps": STEPS, "save_every": STEPS, "patience": None}
    straight = run(lm, rewarded(lm, learner(lm, "prefix-tuning"), reward, **changes), tmp_path / "straight")
    folder = tmp_path / "stopped"
    first = rewarded(lm, learner(lm, "prefix-tuning"), reward, **changes)
    assert run(lm, first, folder, report=stop_after(3)).interrupted
    again = rewarded(lm, learner(lm, "prefix-tuning", seed=77), reward, **changes)
    check_same(folder, run(lm, again, folder, resume=True), tmp_path / "straight", straight)


def rule(tmp_path: Path, body: str) -> RewardFunction:
    path = tmp_path / "own.py"
    path.write_text(body)
    return RewardFunction(f"{path}:own")


ROWS = [({"prompt": "a", "limit": 3}, "x"), ({"prompt": "b", "limit": 5}, "y")]


def called(reward: RewardFunction, turns: bool = False) -> list[float]:
    sources = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} if turns else row for row, _ in ROWS]
    records = parse_rows([(f"f:{i}", row) for i, row in enumerate(sources, 1)], options=ReadOptions(prompts=True))
    return reward([(record, TEMPLATE) for record in records], [answer for _, answer in ROWS])


WORKING = [
    "def own(prompts, completions, rows): return [r['limit'] + (c == 'y') for r, c in zip(rows, completions)]",
    "def own(completions, limit, **kwargs): return [n + (c == 'y') for n, c in zip(limit, completions)]  # as TRL's",
    "import numpy as np\ndef own(prompts, limit): return np.array(limit) + (np.array(prompts) == 'b')",
]


@pytest.mark.parametrize("body", WORKING)
def test_a_reward_takes_what_it_names(body: str, tmp_path: Path) -> None:
    assert called(rule(tmp_path, body)) == [3.0, 6.0]


def test_of_conversations_it_gets_messages(tmp_path: Path) -> None:
    body = """
def own(prompts, completions):
    wanted = {"role": "assistant", "content": "y"}
    return [float(p[0]["role"] == "user" and c == [wanted]) for p, c in zip(prompts, completions)]
"""
    assert called(rule(tmp_path, body), turns=True) == [0.0, 1.0]


BROKEN = [
    ("def own(completions): raise KeyError('x')", "the reward failed"),
    ("def own(completions): return [1.0]", "another number of values"),
    ("def own(completions): return None", "another number of values"),
    ("def own(completions): return ['a', 'b']", "is no number"),
    ("def own(completions): return [1.0, float('nan')]", "not a finite number"),
    ("def own(color): return [1.0, 2.0]", "takes color, which the rows do not have"),
]


@pytest.mark.parametrize(("body", "what"), BROKEN, ids=[what for _, what in BROKEN])
def test_a_broken_reward_is_told(body: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=what) as caught:
        called(rule(tmp_path, body))
    assert "own.py:own" in str(caught.value.where)


@pytest.mark.parametrize("name", ["none.py:own", "own", "json:none"])
def test_a_reward_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError):
        RewardFunction(name)
