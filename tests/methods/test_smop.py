"""SMoP: routed rows, a straight-through gradient into the router, noise that balances, and the finished router."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt.data.tokenize import Example
from softprompt.errors import ConfigError
from softprompt.methods.initializers import initial_embeddings
from softprompt.methods.rng import generator
from softprompt.methods.smop import SMoP
from softprompt.prompts.forms import EmbeddingPrompt
from tests.support.learning import judged, learn, nats_behind
from tests.support.tasks import ANSWER, END, answers, learner, start_of
from tests.support.tiny import tiny_lm


def smop(**changes: Any) -> SMoP:
    method = learner(tiny_lm("llama"), "smop", **changes)
    assert isinstance(method, SMoP)
    return method


def kinds(count: int, seed: int) -> list[Example]:
    """Two kinds of text, of low bytes or of high ones, with an answer each."""
    rows, draw = [], torch.Generator().manual_seed(seed)
    for i in range(count):
        low = 4 if i % 2 else 150
        given = torch.randint(low, low + 60, (5,), generator=draw).tolist()
        learned = ANSWER[::-1] if i % 2 else ANSWER
        rows.append(Example((*given, *learned, END), (False,) * 5 + (True,) * 4, f"f.jsonl:{i + 1}", task=i % 2))
    return rows


def routed(method: SMoP, rows: list[Example]) -> list[int]:
    with torch.no_grad():
        return list(method.assign(rows)[1])


def test_the_forward_value_is_the_plain_prompt_and_the_router_gets_its_gradient() -> None:
    """As if the prompt were P_k p_k, but for its value; p with the noise that seed and step give."""
    lm, rows, method = tiny_lm("llama"), answers(9, 0), smop(seed=4)
    with torch.no_grad():
        for table in method.prompts:
            table.add_(torch.randn(table.shape, generator=generator(1)))
    pull = torch.randn(9, 6, 32, generator=generator(2))
    copies, prefix_ids = method.assign(rows)
    assert list(prefix_ids) == list(range(9))
    made = torch.stack([copy.embeddings for copy in copies if isinstance(copy, EmbeddingPrompt)])
    means = torch.stack([lm.embed(row.ids[: row.mask.index(True)]).mean(0) for row in rows])
    weights = method.weights.detach().clone().requires_grad_(True)
    logits = means @ weights.T
    noise = torch.randn(9, 3, generator=generator(4 * 1_000_003))
    chances = torch.softmax(logits + noise * logits.detach(), dim=1)
    chosen = chances.argmax(1).tolist()
    assert len(set(chosen)) > 1
    plain = torch.stack([method.prompts[k] for k in chosen])
    assert_close(made, plain, rtol=0, atol=0)
    (made * pull).sum().backward()
    scaled = sum(chances[i, k] * (pull[i] * plain[i].detach()).sum() for i, k in enumerate(chosen))
    assert isinstance(scaled, torch.Tensor)
    (wanted,) = torch.autograd.grad(scaled, weights)
    assert wanted.abs().max() > 1e-3
    assert method.weights.grad is not None
    assert_close(method.weights.grad, wanted, rtol=1e-4, atol=1e-5)
    for k, table in enumerate(method.prompts):
        own = sum((pull[i] for i, other in enumerate(chosen) if other == k), torch.zeros(6, 32))
        assert table.grad is not None
        assert_close(table.grad, own)


def test_noise_while_training_only() -> None:
    """Then every prompt gets some of the same rows, others each time."""
    method, rows = smop(init="vocab"), answers(1, 0) * 200
    quiet = routed(method, rows)
    assert len(set(quiet)) == 1
    assert quiet == routed(method, rows) == routed(method.eval(), rows)
    prompts, prefix_ids = method.assign(rows)
    assert (len(prompts), list(prefix_ids)) == (3, quiet), "no copies where none are needed"
    method.train()
    one, two = noisy(method, rows), noisy(method, rows)
    assert one != two
    assert set(one) == set(two) == {0, 1, 2}


def noisy(method: SMoP, rows: list[Example]) -> list[int]:
    """The prompt that each row's copy is of."""
    tables = [p.embeddings for p in method.assign(rows)[0] if isinstance(p, EmbeddingPrompt)]
    return [next(k for k, plain in enumerate(method.prompts) if torch.equal(table, plain)) for table in tables]


def test_learned_tokens_do_not_choose_the_prompt() -> None:
    """The answer is not there yet when a text is routed."""
    method, row = smop(), answers(1, 3)[0]
    first = row.mask.index(True)
    others = [Example((*row.ids[:first], *ids), row.mask[: first + 4], "x") for ids in ((9, 9, 9, 9), (200, 201, 5, 6))]
    assert len(set(routed(method, [row, *others]))) == 1
    given = [Example((i, *row.ids[first:]), (False, *row.mask[first:]), "x") for i in range(4, 60)]
    assert len(set(routed(method, given))) > 1


def test_the_prompts_start_where_the_initialiser_says_with_a_seed_each() -> None:
    lm = tiny_lm("llama")
    method = learner(lm, "smop", init="vocab", seed=5)
    for k, prompt in enumerate(method.freeze()):
        wanted = initial_embeddings(lm, start_of(lm, init="vocab", seed=5 + k))
        assert_close(prompt.tensors()["embeddings"], wanted, rtol=0, atol=0)


def test_it_tells_two_kinds_of_text_apart() -> None:
    """Better than after any one of its prompts, and every kind of text mostly after the same."""
    lm, held_out, method = tiny_lm("llama"), kinds(24, 1000), smop(n_prompts=2)
    before = judged(lm, method, held_out)
    learn(lm, method, kinds(64, 0), steps=150)
    after = judged(lm, method, held_out)
    assert after < 0.6 * before
    with torch.no_grad():
        alone = [nats_behind(lm, method.freeze(), [k] * 24, held_out).item() for k in range(2)]
    assert after < min(alone)
    chosen = routed(method, held_out)
    assert len(set(chosen)) == 2


def test_the_finished_router_chooses_as_the_method_does() -> None:
    lm, method, rows = tiny_lm("llama"), smop(), answers(20, 7)
    learn(lm, method, rows, steps=3)
    router = method.router(["a", "b", "c"])
    given = [row.ids[: row.mask.index(True)] for row in rows]
    assert [router.choose(lm, ids) for ids in given] == routed(method, rows)
    with torch.no_grad():
        method.weights.zero_()
    assert router.weights.abs().max() > 0, "a copy"


def test_one_prompt_needs_no_router() -> None:
    with pytest.raises(ConfigError, match=r"(?s)choose from.*>= 2"):
        SMoP(tiny_lm("llama"), start_of(tiny_lm("llama")), n_prompts=1)
