"""Where virtual tokens start."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import ConfigError
from softprompt.methods import Start, build
from softprompt.methods.inits import embeddings, frequent_tokens, harvest, keys_values, token_ids
from tests.laws.cases import cached, check_close, pairs, same_kv
from tests.tiny import FAMILIES, tiny_lm

TEXT = (70, 71, 72)


def test_text_is_repeated_or_cut() -> None:
    lm = tiny_lm("llama")
    assert token_ids(lm, Start(5, "text", TEXT)) == [70, 71, 72, 70, 71]
    assert token_ids(lm, Start(2, "text", TEXT)) == [70, 71]
    assert_close(embeddings(lm, Start(2, "text", TEXT)), lm.embed([70, 71]), rtol=0, atol=0)


def test_labels_are_the_means_of_their_subwords() -> None:
    lm, labels = tiny_lm("llama"), ((10, 11), (20,))
    made = embeddings(lm, Start(4, "labels", labels=labels, seed=3))
    assert_close(made[0], lm.embed([10, 11]).mean(0))
    assert_close(made[1], lm.embed([20])[0])
    assert_close(made[2:], lm.embed(frequent_tokens(lm, 2, 3)), rtol=0, atol=0)
    assert_close(embeddings(lm, Start(1, "labels", labels=labels)), made[:1])
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
    made = embeddings(lm, Start(400, "uniform", seed=1))
    table = lm.embedding.weight
    assert made.std().item() == pytest.approx(table.std().item(), rel=0.05)
    assert made.abs().max() < 2 * table.std()
    assert abs(made.mean().item()) < 0.02
    assert not torch.equal(made, embeddings(lm, Start(400, "uniform", seed=2)))


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
    assert same_kv(keys_values(lm, start).layers, wanted.layers)


def test_uniform_keys_and_values_have_the_spread_of_real_ones() -> None:
    lm = tiny_lm("llama")
    made, real = keys_values(lm, Start(100, "uniform", seed=4)), harvest(lm, frequent_tokens(lm, 100, 4))
    for ours, theirs in zip(pairs(made.layers), pairs(real.layers), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.std().item() == pytest.approx(other.std().item(), rel=0.1)
    (first, _), (second, _) = pairs(made.layers)
    assert (first / first.std() - second / second.std()).abs().max() > 0.1, "each layer draws anew"


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "prefix-tuning-mlp"])
@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (Start(3, "text"), "init text has nothing to start from"),
        (Start(3, "labels"), "init labels"),
        (Start(3, "magic", TEXT), r"(?s)unknown initialiser 'magic'.*text.*labels.*vocab.*uniform"),
    ],
)
def test_what_is_missing_is_named(method: str, start: Start, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build(method, tiny_lm("llama"), start)


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    for name in ("prompt-tuning", "prefix-tuning", "prefix-tuning-mlp"):
        for init in ("uniform", "vocab"):
            build(name, tiny_lm("llama"), Start(3, init, hidden=4))
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_uniform_has_the_spread_of_real_tokens(family: str) -> None:
    """As the model itself scales them: Gemma multiplies its embeddings by the root of their width."""
    lm = tiny_lm(family)
    made = embeddings(lm, Start(64, init="uniform"))
    real = lm.embed(torch.arange(lm.geometry.vocab)).float()
    assert made.std().item() == pytest.approx(real.std().item(), rel=0.1)
