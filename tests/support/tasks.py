"""Tiny training runs: a task a random model cannot do, a prompt that learns it in a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from softprompt.data.tokenize import Example
from softprompt.methods.base import Method, Start
from softprompt.methods.registry import build
from softprompt.methods.smop import SMoP
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.config import TrainConfig
from softprompt.training.events import Event
from softprompt.training.loop import Result, train
from softprompt.training.trial import Task, Trial
from tests.support.cases import random_prompt, text_ids

ANSWER, END = (70, 81, 92), 2
METHOD_NAMES = ("prompt-tuning", "prefix-tuning", "prefix-tuning-mlp")  # a method of each kind, for the loop


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


def start_of(lm: FrozenLM, *, n_tokens: int = 6, **changes: Any) -> Start:
    """Virtual tokens that start from a text; three sources for a mixture, three prompts for a router."""
    sources = tuple(random_prompt(lm, "embedding", n_tokens, seed) for seed in (11, 12, 13))
    text = tuple(text_ids(6, 5))
    return replace(Start(n_tokens, text=text, hidden=8, sources=sources, n_prompts=3), **changes)


def learner(lm: FrozenLM, name: str, **changes: Any) -> Method | SMoP:
    """The method by name, of six virtual tokens that start from a text."""
    return build(name, lm, start_of(lm, **changes))


def settings(**changes: Any) -> TrainConfig:
    """Ten steps of eight rows."""
    defaults: dict[str, Any] = {"steps": 10, "batch_size": 8, "evals": 4, "save_every": 1000}
    return TrainConfig(**(defaults | changes))


def run(
    lm: FrozenLM,
    method: Method | SMoP,
    folder: Path,
    *,
    rows: Task | None = None,
    resume: bool = False,
    report: Callable[[Event], None] = lambda event: None,
    **changes: Any,
) -> Result:
    """Train on the task."""
    trial = Trial(method, (rows or task(),), settings(**changes), lm.device)
    (result,) = train(lm, [trial], folder, resume=resume, report=report)
    return result
