"""Values fitted to what rows get behind the text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt import matching
from softprompt.attach import Prefix, attention_outputs, bank
from softprompt.attach import attention as attend
from softprompt.attended import Reading, most_attended
from softprompt.matching import matched
from softprompt.model import FrozenLM
from softprompt.packing import Row
from softprompt.prompt import KVPrompt
from tests.laws.cases import text_ids
from tests.test_attended import FOLLOW, rows, states
from tests.tiny import FAMILIES, tiny_lm

TEXT = tuple(text_ids(40, 1))


def values(prompt: KVPrompt) -> list[Tensor]:
    return [kv[1] for kv in prompt.layers if kv is not None]


@torch.no_grad()
def missing(lm: FrozenLM, prompt: KVPrompt, reading: Reading) -> Tensor:
    """How far from what the text gives the first layer's outputs are, of all tokens of the rows."""
    parts = Prefix(lead=reading.ids, follow=reading.follow), Prefix(prompt, follow=reading.follow)
    part = [Row(row.ids) for row in reading.rows]
    first = [attention_outputs(lm, bank(lm, [prefix]), part)[0] for prefix in parts]
    (_, goal), (_, now) = (own for own in first if own is not None)
    return (goal - now).norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_nearer_to_the_text(family: str) -> None:
    """On other rows than those that it was fitted on; keys stay as they are."""
    lm, readings = tiny_lm(family), [Reading(TEXT, FOLLOW, rows(60))]
    before = most_attended(lm, readings, 12)
    after = matched(lm, before, readings)
    wanted = states(lm, None, TEXT)
    assert (states(lm, after) - wanted).norm() < 0.95 * (states(lm, before) - wanted).norm()
    assert missing(lm, after, readings[0]) < 0.85 * missing(lm, before, readings[0])
    for old, new in zip(before.layers, after.layers, strict=True):
        assert old is not None and new is not None and torch.equal(old[0], new[0]) and not torch.equal(old[1], new[1])


def test_a_prompt_that_lacks_nothing_stays() -> None:
    lm, readings = tiny_lm("llama"), [Reading(TEXT, FOLLOW, rows(3))]
    whole = most_attended(lm, readings, len(TEXT))
    for old, new in zip(values(whole), values(matched(lm, whole, readings)), strict=True):
        assert_close(new, old, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("numbers", [1, 10**9])
def test_it_is_the_least_squares_solution(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all rows of two texts, one row at a time or all at once: against a plain solver on the stacked equations."""
    monkeypatch.setattr(attend, "NUMBERS", numbers)
    lm: FrozenLM = tiny_lm("llama")
    readings = [Reading(TEXT, FOLLOW, rows(3)), Reading(tuple(text_ids(20, 9)), FOLLOW, rows(2, 50))]
    prompt = most_attended(lm, readings, 7)
    after = matched(lm, prompt, readings)
    for layer in range(len(prompt.layers)):
        kv, new = prompt.layers[layer], after.layers[layer]
        assert kv is not None and new is not None
        groups, tokens, _ = kv[1].shape
        for group in range(groups):
            weights, missing = [], []
            for reading in readings:
                for row in reading.rows:
                    goal = attention_outputs(lm, bank(lm, [Prefix(lead=reading.ids, follow=FOLLOW)]), [Row(row.ids)])
                    now = attention_outputs(lm, bank(lm, [Prefix(prompt, follow=FOLLOW)]), [Row(row.ids)])
                    (_, wanted), (looked, got) = goal[layer], now[layer]  # type: ignore[misc]
                    heads = looked.shape[1] // groups
                    own = slice(group * heads, (group + 1) * heads)
                    weights.append(looked[:, own, :tokens].flatten(0, 1))
                    missing.append((wanted - got)[:, own].flatten(0, 1))
            a, b = torch.cat(weights), torch.cat(missing)
            ridge = (matching.RIDGE * len(a) / tokens) ** 0.5 * torch.eye(tokens)
            change = torch.linalg.lstsq(torch.cat([a, ridge]), torch.cat([b, b.new_zeros(tokens, b.shape[1])])).solution
            assert_close(new[1][group], kv[1][group] + change, rtol=1e-3, atol=1e-4)
