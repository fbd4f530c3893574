"""Tiny training runs: a task a random model cannot do, a prompt that learns it in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from softprompt.candidate import Candidate, Task
from softprompt.config import TrainConfig
from softprompt.data.tokenise import Example
from softprompt.methods import Method, Start, build
from softprompt.model import FrozenLM
from softprompt.train import Event, Result, train
from tests.laws.cases import text_ids

ANSWER, END = (70, 81, 92), 2
METHOD_NAMES = ("prompt-tuning", "prefix-tuning", "prefix-tuning-mlp")


def answers(count: int, seed: int) -> list[Example]:
    """Random bytes of 2 to 9 tokens, behind which the same three tokens and the end are learned."""
    rows = []
    for i in range(count):
        given = text_ids(2 + (seed + i) % 8, seed + i)
        mask = [False] * len(given) + [True] * (len(ANSWER) + 1)
        rows.append(Example((*given, *ANSWER, END), tuple(mask), f"f.jsonl:{i + 1}"))
    return rows


def task(*, validation: int = 8) -> Task:
    """Forty rows to learn from, and others to judge by."""
    return Task(answers(40, 0), answers(validation, 1000), (), (50, 51), "digest of the data")


def learner(lm: FrozenLM, name: str, *, seed: int = 0, frozen_tokens: int = 0) -> Method:
    """Six virtual tokens that start from a text."""
    start = Start(n_tokens=6, text=tuple(text_ids(6, 5)), frozen_tokens=frozen_tokens, hidden=8, seed=seed)
    return build(name, lm, start)


def settings(**changes: Any) -> TrainConfig:
    """Ten steps of eight rows."""
    defaults: dict[str, Any] = {"steps": 10, "batch_size": 8, "evals": 4, "save_every": 1000}
    return TrainConfig(**(defaults | changes))


def run(
    lm: FrozenLM,
    method: Method,
    folder: Path,
    *,
    rows: Task | None = None,
    resume: bool = False,
    report: Callable[[Event], None] = lambda event: None,
    **changes: Any,
) -> Result:
    """Train on the task."""
    candidate = Candidate(method, (rows or task(),), settings(**changes), lm.device)
    (result,) = train(lm, [candidate], folder, resume=resume, report=report)
    return result
