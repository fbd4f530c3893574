"""The loss of tokenised rows: which tokens count, after which prefix."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.data.tokenize import Example
from softprompt.objectives.next_token import learned_tokens, token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from tests.laws.oracle import plain_logits
from tests.support.cases import examples, mixed_prefixes, random_prompt, text_ids
from tests.support.tiny import tiny_lm

OWNERS = [0, 3, 1, 5, 2, 4]
ROWS = examples((5, 8, 1, 2, 11, 4), seed=50)


def row(ids: list[int], learned: list[int]) -> Example:
    return Example(tuple(ids), tuple(t in learned for t in range(len(ids))), "f.jsonl:1")


@torch.no_grad()
def test_token_losses_example_after_example() -> None:
    lm = tiny_lm("llama")
    prefixes = mixed_prefixes(lm)
    wanted = []
    for example, owner in zip(ROWS, OWNERS, strict=True):
        logs = torch.log_softmax(plain_logits(lm, prefixes[owner], example.ids), -1)
        wanted += [-logs[t - 1, example.ids[t]] for t, on in enumerate(example.mask) if on]
    own = prepare_prefixes(lm, prefixes)
    ours = token_losses(lm, own, ROWS, OWNERS)
    assert len(ours) == learned_tokens(ROWS)
    assert_close(ours, torch.stack(wanted), rtol=1e-4, atol=5e-5)


def test_owners_default_to_the_first_prefix() -> None:
    lm = tiny_lm("llama")
    own = prepare_prefixes(lm, mixed_prefixes(lm))
    first = token_losses(lm, own, ROWS, [0] * len(ROWS))
    assert_close(token_losses(lm, own, ROWS), first)
    assert (token_losses(lm, own, ROWS, [1] * len(ROWS)) - first).abs().max() > 0.1


def test_only_learned_tokens_count() -> None:
    """A given token after the last learned one changes nothing, nor does the mask of another row."""
    lm = tiny_lm("llama")
    own, ids = prepare_prefixes(lm, [Prefix()]), text_ids(6, 1)
    one = token_losses(lm, own, [row(ids, [2, 4])])
    assert len(one) == 2
    assert_close(token_losses(lm, own, [row([*ids[:5], 99], [2, 4])]), one)
    both = token_losses(lm, own, [row(ids, [4]), row(ids, [2])])
    assert_close(both, one.flip(0))


def test_learned_tokens() -> None:
    assert learned_tokens([row([1, 2, 3], [1, 2]), row([1], []), row([1, 2], [1])]) == 3
    assert learned_tokens([]) == 0


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_no_learned_token_is_no_loss(form: str) -> None:
    """A part of a batch may have none; its gradient is zero, not an error."""
    lm = tiny_lm("llama")
    prefix = Prefix(random_prompt(lm, form, 3, 0, grad=True))
    loss = token_losses(lm, prepare_prefixes(lm, [prefix]), [row(text_ids(4, 1), [])]).sum()
    assert loss.item() == 0.0
    loss.backward()
    assert prefix.prompt is not None
    assert all(t.grad is not None and not t.grad.any() for t in prefix.prompt.tensors().values())
