"""Where virtual tokens start."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import ConfigError, GeometryError
from softprompt.methods.base import Start
from softprompt.methods.initializers import frequent_tokens, harvest, initial_embeddings, initial_keys_values, token_ids
from softprompt.methods.registry import method_specs
from softprompt.prefix.kv import Prefix
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt, prompt_digest
from tests.laws.oracle import plain_logits
from tests.support.cases import cached, check_close, pairs, random_prompt, same_kv, text_ids
from tests.support.tasks import learner
from tests.support.tiny import FAMILIES, tiny_lm

METHODS = tuple(method_specs())

TEXT = (70, 71, 72)


def test_text_is_repeated_or_cut() -> None:
    lm = tiny_lm("llama")
    assert token_ids(lm, Start(5, "text", TEXT)) == [70, 71, 72, 70, 71]
    assert token_ids(lm, Start(2, "text", TEXT)) == [70, 71]
    assert_close(initial_embeddings(lm, Start(2, "text", TEXT)), lm.embed([70, 71]), rtol=0, atol=0)


def test_labels_are_the_means_of_their_subwords() -> None:
    lm, labels = tiny_lm("llama"), ((10, 11), (20,))
    made = initial_embeddings(lm, Start(4, "labels", labels=labels, seed=3))
    assert_close(made[0], lm.embed([10, 11]).mean(0))
    assert_close(made[1], lm.embed([20])[0])
    assert_close(made[2:], lm.embed(frequent_tokens(lm, 2, 3)), rtol=0, atol=0)
    assert_close(initial_embeddings(lm, Start(1, "labels", labels=labels)), made[:1])
    assert token_ids(lm, Start(4, "labels", labels=labels)) == [10, 11, 20, 10]


def test_vocabulary_tokens_are_different_plain_and_seeded() -> None:
    lm = tiny_lm("llama")
    ids = frequent_tokens(lm, 40, seed=1)
    assert len(set(ids)) == 40
    assert not set(ids) & set(lm.tokenizer.all_special_ids)
    assert max(ids) < len(lm.tokenizer), "rows of the table that no token uses are not taken"
    assert all(str(lm.tokenizer.decode([i])).strip() for i in ids)
    assert ids == frequent_tokens(lm, 40, seed=1) != frequent_tokens(lm, 40, seed=2)
    assert len(frequent_tokens(lm, 600, seed=1)) == 600, "more than there are: repeated"


def test_uniform_has_the_spread_of_the_embeddings() -> None:
    lm = tiny_lm("llama")
    made = initial_embeddings(lm, Start(400, "uniform", seed=1))
    table = lm.embedding.weight
    assert made.std().item() == pytest.approx(table.std().item(), rel=0.05)
    assert made.abs().max() < 2 * table.std()
    assert abs(made.mean().item()) < 0.02
    assert not torch.equal(made, initial_embeddings(lm, Start(400, "uniform", seed=2)))


@pytest.mark.parametrize("family", FAMILIES)
def test_harvest_is_what_the_models_own_cache_holds(family: str) -> None:
    lm = tiny_lm(family)
    for ours, theirs in zip(pairs(harvest(lm, TEXT).layers), cached(lm, TEXT), strict=True):
        for mine, wanted in zip(ours, theirs, strict=True):
            check_close(mine, wanted)


@pytest.mark.parametrize("init", ["text", "vocab", "labels"])
def test_a_kv_prompt_begins_with_the_lead(init: str) -> None:
    """The BOS is part of it, and P counts it."""
    lm = tiny_lm("llama")
    start = Start(4, init, TEXT, labels=((10,), (11,)), lead=(3,))
    wanted = harvest(lm, [3, *token_ids(lm, start)][:4])
    assert same_kv(initial_keys_values(lm, start).layers, wanted.layers)


def test_uniform_keys_and_values_have_the_spread_of_real_ones() -> None:
    lm = tiny_lm("llama")
    made, real = initial_keys_values(lm, Start(100, "uniform", seed=4)), harvest(lm, frequent_tokens(lm, 100, 4))
    for ours, theirs in zip(pairs(made.layers), pairs(real.layers), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.std().item() == pytest.approx(other.std().item(), rel=0.1)
    (first, _), (second, _) = pairs(made.layers)
    assert (first / first.std() - second / second.std()).abs().max() > 0.1, "each layer draws anew"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (Start(3, "text"), "init text has nothing to start from"),
        (Start(3, "labels"), "init labels"),
        (Start(3, "magic", TEXT), r"(?s)unknown initializer 'magic'.*text.*labels.*vocab.*uniform"),
    ],
)
def test_what_is_missing_is_named(method: str, start: Start, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        learner(tiny_lm("llama"), method, n_tokens=3, init=start.init, text=start.text)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_uniform_has_the_spread_of_real_tokens(family: str) -> None:
    """As the model itself scales them: Gemma multiplies its embeddings by the root of their width."""
    lm = tiny_lm(family)
    made = initial_embeddings(lm, Start(64, init="uniform"))
    real = lm.embed(torch.arange(lm.geometry.vocab)).float()
    assert made.std().item() == pytest.approx(real.std().item(), rel=0.1)


def test_normal_is_plain() -> None:
    lm = tiny_lm("llama")
    tables = [initial_embeddings(lm, Start(100, "normal", seed=1))]
    tables += [t for kv in pairs(initial_keys_values(lm, Start(100, "normal", seed=1)).layers) for t in kv]
    for table in tables:
        assert (table.mean().item(), table.std().item()) == pytest.approx((0, 1), abs=0.1)


def test_another_prompt_is_copied() -> None:
    """Exactly, and training writes nothing into it."""
    lm = tiny_lm("llama")
    for form in ("embedding", "kv"):
        one = random_prompt(lm, form, 4, 1)
        before, start = prompt_digest(one), Start(4, "prompt", prompt=one, lead=(3,))
        made = EmbeddingPrompt(initial_embeddings(lm, start)) if form == "embedding" else initial_keys_values(lm, start)
        assert prompt_digest(made) == before
        for tensor in made.tensors().values():
            tensor.fill_(9.0)
        assert prompt_digest(one) == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lead", [(), (3, 9)])
def test_a_kv_prompt_that_starts_from_an_embedding_prompt_acts_like_it(lead: tuple[int, ...], family: str) -> None:
    lm, ids = tiny_lm(family), text_ids(6, 3)
    one = random_prompt(lm, "embedding", 4, 1)
    made = initial_keys_values(lm, Start(4 + len(lead), "prompt", prompt=one, lead=lead))
    assert not any(t.requires_grad for t in made.tensors().values())
    with torch.no_grad():
        check_close(plain_logits(lm, Prefix(made), ids), plain_logits(lm, Prefix(one, lead), ids))


def test_a_prompt_that_cannot_be_started_from_is_refused() -> None:
    lm = tiny_lm("llama")
    short, kv = random_prompt(lm, "embedding", 4, 1), random_prompt(lm, "kv", 4, 1)
    with pytest.raises(ConfigError, match=r"(?s)cannot start from a KV prompt.*keys and values"):
        initial_embeddings(lm, Start(4, "prompt", prompt=kv))
    for make, start, length in (
        (initial_embeddings, Start(6, "prompt", prompt=short), 4),
        (initial_keys_values, Start(3, "prompt", prompt=kv), 4),
        (initial_keys_values, Start(4, "prompt", prompt=short, lead=(3,)), 5),
        (initial_embeddings, Start(2, "demonstrations", TEXT), 3),
        (initial_keys_values, Start(3, "demonstrations", TEXT, lead=(3,)), 4),
    ):
        with pytest.raises(ConfigError, match=rf"(?s)another number of virtual tokens.*{length}.*--n-tokens {length}"):
            make(lm, start)
    for make in (initial_embeddings, initial_keys_values):
        with pytest.raises(ConfigError, match="nothing to start from"):
            make(lm, Start(4, "prompt"))
        with pytest.raises(GeometryError):
            make(lm, Start(4, "prompt", prompt=EmbeddingPrompt(torch.zeros(4, 31))))
        with pytest.raises(GeometryError):
            make(lm, Start(4, "prompt", prompt=KVPrompt((None,))))


def test_demonstrations_stand_as_they_are() -> None:
    lm = tiny_lm("llama")
    assert_close(initial_embeddings(lm, Start(3, "demonstrations", TEXT)), lm.embed(list(TEXT)), rtol=0, atol=0)
    made = initial_keys_values(lm, Start(4, "demonstrations", TEXT, lead=(3,)))
    assert same_kv(made.layers, harvest(lm, (3, *TEXT)).layers)
