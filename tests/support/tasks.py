"""Tiny training runs: a task a random model cannot do, a prompt that learns it in a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from softprompt.data.tokenize import Example
from softprompt.methods.base import Method, MethodContext, Start
from softprompt.methods.registry import build_method, method_settings, method_spec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt
from softprompt.training.config import TrainConfig
from softprompt.training.events import Event
from softprompt.training.loop import train
from softprompt.training.result import Result
from softprompt.training.trial import Task, Trial
from tests.support.cases import random_prompt, text_ids

ANSWER, END = (70, 81, 92), 2
METHOD_NAMES = ("prompt-tuning", "prefix-tuning", "prefix-tuning-mlp")  # a method of each kind, for the loop


def answers(count: int, seed: int) -> list[Example]:
    """Random bytes of 2 to 9 tokens, after which the same three tokens and the end are learned."""
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
    """Virtual tokens that start from a text."""
    return replace(Start(n_tokens, text=tuple(text_ids(6, 5))), **changes)


def source_prompts(lm: FrozenLM, n_tokens: int = 6) -> tuple[SoftPrompt, ...]:
    """Three saved prompts."""
    return tuple(random_prompt(lm, "embedding", n_tokens, seed) for seed in (11, 12, 13))


def context_of(name: str, sources: Sequence[SoftPrompt] = (), n_tasks: int = 1, **settings: Any) -> MethodContext[Any]:
    """The settings of a method, small, of those that it has; and the prompts that it may take as sources."""
    prompts = {f"source{i}": prompt for i, prompt in enumerate(sources)}
    values = {"hidden": 8, "n_prompts": 3, "sources": tuple(prompts)} | settings
    known = method_spec(name).settings.model_fields
    chosen = {key: value for key, value in values.items() if key in known}
    return MethodContext(method_settings({"name": name} | chosen), prompts, n_tasks)


def learner(lm: FrozenLM, name: str, sources: Sequence[SoftPrompt] | None = None, **changes: Any) -> Method:
    """The method by name, of six virtual tokens that start from a text; changes of its start or of its settings."""
    of_start = {field.name for field in fields(Start)}
    start = start_of(lm, **{key: value for key, value in changes.items() if key in of_start})
    rest = {key: value for key, value in changes.items() if key not in of_start}
    return build_method(
        name, lm, start, context_of(name, source_prompts(lm, start.n_tokens) if sources is None else sources, **rest)
    )


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
    trial = Trial(method, (rows or task(),), settings(**changes), lm.device)
    (result,) = train(lm, [trial], folder, resume=resume, report=report)
    return result
