"""What holds of every method: its exact start, its gradient, and that what it learned is all in the frozen prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from softprompt.methods.initializers import INITS, initial_embeddings, initial_keys_values
from softprompt.methods.registry import method_spec, method_specs
from softprompt.prefix.kv import Prefix
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import prompt_digest
from tests.laws.oracle import plain_logits
from tests.support.cases import check_close, random_prompt, text_ids
from tests.support.learning import FOLLOW, judged, learn, nats, nats_behind
from tests.support.tasks import answers, learner, source_prompts, start_of
from tests.support.tiny import FAMILIES, tiny_lm

METHODS = tuple(method_specs())

TRAINED = [name for name in METHODS if name not in ("prompt-tuning", "prefix-tuning")]  # have more than their prompt


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_starts_exactly_where_the_initialiser_says(name: str, family: str) -> None:
    lm = tiny_lm(family)
    start = start_of(lm)
    wanted = initial_keys_values(lm, start).matrix() if method_spec(name).trains_kv else initial_embeddings(lm, start)
    for prompt in learner(lm, name).eval()():
        off = 1e-5 if name == "decomposed" else 0.0  # a product of two matrices is rounded
        assert_close(prompt.matrix().detach(), wanted, rtol=off, atol=off)


@pytest.mark.parametrize("init", [init for init in INITS if init != "labels"])
@pytest.mark.parametrize("name", TRAINED)
def test_from_every_initialiser(name: str, init: str) -> None:
    lm, kv = tiny_lm("llama"), method_spec(name).trains_kv
    start = start_of(lm, init=init, prompt=random_prompt(lm, "kv" if kv else "embedding", 6, 3), seed=2)
    wanted = initial_keys_values(lm, start).matrix() if kv else initial_embeddings(lm, start)
    method = learner(lm, name, init=init, prompt=start.prompt, seed=2).eval()
    assert_close(method()[0].matrix().detach(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_gradient_reaches_every_parameter_after_one_step(name: str) -> None:
    """Some last layers start at zero: in the first step nothing comes through them."""
    lm, rows = tiny_lm("llama"), answers(16, 0)
    method = learner(lm, name, n_tokens=6)
    learn(lm, method, rows, steps=1, lr=0.05)
    nats(lm, method, rows).backward()
    assert [n for n, p in method.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert all(p.grad is None for p in lm.hf_model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_all_that_it_learned_is_in_what_is_saved(name: str, tmp_path: Path) -> None:
    """Nats per token of held-out rows fall, and the loaded prompt gives them without the method."""
    lm, held_out = tiny_lm("llama"), answers(8, 1000)
    method = learner(lm, name)
    before = judged(lm, method, held_out)
    learn(lm, method, answers(40, 0), steps=150, lr=0.3 if method_spec(name).trains_kv else 0.1)
    after = judged(lm, method, held_out)
    share = 0.15 if method_spec(name).trains_kv else 0.6  # six embeddings are weak in two random layers
    assert after < before * share
    with torch.no_grad():
        prompts, prefix_ids = method.eval().assign(held_out)
    kept = method.freeze()
    assert [prompt_digest(prompt.freeze()) for prompt in prompts] == [prompt_digest(prompt) for prompt in kept], (
        "frozen is live"
    )
    loaded: list[SoftPrompt] = []
    for i, prompt in enumerate(kept):
        card = Card(name=f"p{i}", form=prompt.form, n_tokens=6, sha256="0" * 64, base=lm.geometry.to_dict())
        store.save(tmp_path / f"p{i}", prompt, card)
        loaded.append(store.load(tmp_path / f"p{i}", lm.geometry)[0])
    with torch.no_grad():
        assert nats_behind(lm, loaded, prefix_ids, held_out).item() == pytest.approx(after, rel=1e-6)
        ids = text_ids(7, 5)
        for live, own in zip(prompts, loaded, strict=True):
            ours, theirs = (plain_logits(lm, Prefix(p, (), FOLLOW), ids) for p in (live, own))
            check_close(ours, theirs)


@pytest.mark.parametrize("name", METHODS)
def test_the_state_carries_all_that_the_prompts_are_made_of(name: str) -> None:
    """A resumed run starts from another text and seed; loading the state brings back everything, noise too."""
    lm, rows = tiny_lm("llama"), answers(8, 0)
    one = learner(lm, name, seed=3)
    learn(lm, one, rows, steps=2)
    two = learner(lm, name, seed=4, init="vocab", sources=source_prompts(lm)[::-1])
    two.load_state_dict(one.state_dict())
    assert [prompt_digest(p) for p in one.freeze()] == [prompt_digest(p) for p in two.freeze()]
    for _ in range(2):
        assert nats(lm, one, rows).item() == nats(lm, two, rows).item(), "and trains on alike"


@pytest.mark.parametrize("name", METHODS)
def test_global_random_state_is_left_alone(name: str) -> None:
    """Not touched by building or training, so a trial learns the same alone and among others."""
    lm, before = tiny_lm("llama"), torch.get_rng_state()
    for init in ("uniform", "vocab", "normal"):
        learn(lm, learner(lm, name, init=init), answers(8, 0), steps=1)
    assert torch.equal(torch.get_rng_state(), before)
