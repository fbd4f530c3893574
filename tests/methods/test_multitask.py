"""Multitask prompt tuning: P_t = P* ∘ (u_t v_tᵀ)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.testing import assert_close

from softprompt.data.tokenize import Example
from softprompt.methods.initializers import initial_embeddings
from softprompt.prompts.forms import EmbeddingPrompt
from tests.support.learning import judged, learn, nats_behind, stir
from tests.support.tasks import ANSWER, END, answers, learner, start_of
from tests.support.tiny import tiny_lm


def two_tasks(count: int, seed: int) -> list[Example]:
    """The same texts with two answers: which, only the task tells."""
    rows = []
    for i, row in enumerate(answers(count, seed)):
        given, learned = row.ids[: -len(ANSWER) - 1], ANSWER[::-1] if i % 2 else ANSWER
        rows.append(replace(row, ids=(*given, *learned, END), task=i % 2))
    return rows


def test_the_equation() -> None:
    method = learner(tiny_lm("llama"), "multitask", n_tasks=3)
    state = stir(method)
    prompts = method()
    assert len(prompts) == 4
    tables = [p.embeddings for p in prompts if isinstance(p, EmbeddingPrompt)]
    for t in range(3):
        wanted = state["shared"] * torch.outer(state["tokens"][t], state["features"][t])
        assert_close(tables[t], wanted)
    assert_close(tables[3], state["shared"], rtol=0, atol=0)


def test_every_task_starts_at_the_initialisers_prompt() -> None:
    lm = tiny_lm("llama")
    for prompt in learner(lm, "multitask", n_tasks=3).freeze():
        assert_close(prompt.tensors()["embeddings"], initial_embeddings(lm, start_of(lm)), rtol=0, atol=0)


def test_a_row_stands_behind_the_prompt_of_its_task() -> None:
    method = learner(tiny_lm("llama"), "multitask", n_tasks=2)
    prompts, prefix_ids = method.assign(two_tasks(5, 0))
    assert (len(prompts), list(prefix_ids)) == (3, [0, 1, 0, 1, 0])
    single = learner(tiny_lm("llama"), "multitask")
    assert list(single.assign(answers(3, 0))[1]) == [0, 0, 0], "the shared prompt stands before none"


def test_tasks_that_contradict_each_other_are_learned_together() -> None:
    """Better than after the shared prompt, much better than after the other task's."""
    lm, held_out = tiny_lm("llama"), two_tasks(16, 1000)
    method = learner(lm, "multitask", n_tasks=2)
    before = judged(lm, method, held_out)
    learn(lm, method, two_tasks(40, 0), steps=150)
    own, prompts = judged(lm, method, held_out), method.freeze()
    assert own < 0.6 * before
    with torch.no_grad():
        swapped = nats_behind(lm, prompts, [1 - row.task for row in held_out], held_out).item()
        shared = nats_behind(lm, prompts, [2] * len(held_out), held_out).item()
    assert own < shared and own < 0.7 * swapped


def test_a_new_task_starts_from_the_shared_prompt() -> None:
    lm = tiny_lm("llama")
    method = learner(lm, "multitask", n_tasks=2)
    learn(lm, method, two_tasks(40, 0), steps=5)
    shared = method.freeze()[-1]
    target = learner(lm, "multitask", init="prompt", prompt=shared)
    for prompt in target.freeze():
        assert torch.equal(prompt.tensors()["embeddings"], shared.tensors()["embeddings"])
