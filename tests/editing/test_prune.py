"""Scores of virtual tokens against the plain way: a prompt without each, every row by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from softprompt.data.records import Record
from softprompt.data.spans import prompt_ids, target_ids
from softprompt.data.targets import end_id
from softprompt.data.template import Template
from softprompt.editing.compose import select
from softprompt.editing.prune import Scores, nearest_tokens, prune, score
from softprompt.errors import DataError, PromptError, UnsupportedModelError
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from tests.prefix.test_rope import check_same, harvested
from tests.support import labels as plain
from tests.support.cases import random_prompt, text_ids
from tests.support.rows import records
from tests.support.tiny import tiny_lm

TEMPLATE = Template("text", "Q: {prompt}\nA:")


def rows() -> list[Record]:
    return records(*({"prompt": text, "completion": text[::-1]} for text in plain.TEXTS))


def brute_loss(lm: FrozenLM, formatted: FormattedPrompt, prompt: SoftPrompt) -> float:
    """Mean -log p of the answers' tokens and ends, by concatenation."""
    total, count = 0.0, 0
    for row in rows():
        body = prompt_ids(row, TEMPLATE, lm.tokenizer)
        target = [*target_ids(str(row.target), TEMPLATE, lm.tokenizer), end_id(TEMPLATE, lm.tokenizer)]
        total -= plain.score(lm, replace(formatted, prompt=prompt), body, target)
        count += len(target)
    return total / count


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_scores(form: str, family: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small:
        monkeypatch.setattr("softprompt.editing.prune._BATCH_TOKENS", 60)
        monkeypatch.setattr("softprompt.editing.prune._PREFIX_TOKENS", 20)
    lm = tiny_lm(family)
    formatted = plain.formatted(lm, form, TEMPLATE)
    prompt = formatted.prompt
    assert prompt is not None
    found = score(lm, formatted, rows())
    whole = brute_loss(lm, formatted, prompt)
    assert found.loss == pytest.approx(whole, rel=1e-4)
    for i in range(5):
        without = select(prompt, [j for j in range(5) if j != i], lm)
        assert found.rises[i] == pytest.approx(brute_loss(lm, formatted, without) - whole, abs=1e-4)
    assert len(set(found.rises)) == 5


def test_what_is_scored_is_what_is_saved() -> None:
    """Keeping all but the worst token gives the loss that its score foretold."""
    lm = tiny_lm("llama")
    for form in ("embedding", "kv"):
        formatted = plain.formatted(lm, form, TEMPLATE)
        found = score(lm, formatted, rows())
        pruned = prune(lm, formatted, rows(), found, 4)
        worst = min(range(5), key=found.rises.__getitem__)
        assert pruned.kept == tuple(i for i in range(5) if i != worst)
        assert pruned.loss == pytest.approx(found.loss + found.rises[worst], rel=1e-5)
        assert pruned.loss == pytest.approx(brute_loss(lm, formatted, pruned.prompt), rel=1e-4)


def test_the_best_are_kept_in_their_order() -> None:
    lm, ids = tiny_lm("llama"), text_ids(5, 3)
    whole = harvested(lm, ids, 0)
    formatted = replace(plain.formatted(lm, "kv", TEMPLATE), prompt=whole)
    pruned = prune(lm, formatted, rows(), Scores(1.0, (0.1, -2.0, 3.0, 0.1, 0.5)), 3)
    assert pruned.kept == (0, 2, 4), "the first of two equal ones"
    assert isinstance(pruned.prompt, KVPrompt)
    wanted = select(whole, [0, 2, 4], lm)
    assert isinstance(wanted, KVPrompt)
    check_same(pruned.prompt, wanted)


def test_a_token_that_does_harm_is_found() -> None:
    """Between the embeddings of a text stands one that shouts; without it the loss is that of the text."""
    lm, ids = tiny_lm("llama"), text_ids(4, 2)
    text = lm.embed(ids)
    shout = 40 * lm.embed(text_ids(1, 9))
    formatted = replace(
        plain.formatted(lm, "embedding", TEMPLATE), prompt=EmbeddingPrompt(torch.cat([text[:2], shout, text[2:]]))
    )
    found = score(lm, formatted, rows())
    without = brute_loss(lm, formatted, EmbeddingPrompt(text))
    assert found.loss + found.rises[2] == pytest.approx(without, rel=1e-4)


def test_nearest_tokens() -> None:
    lm = tiny_lm("llama")
    ids = lm.encode("abcx")
    prompt = EmbeddingPrompt(7 * lm.embed(ids) + 0.01)
    assert nearest_tokens(lm, prompt) == list("abcx")


def test_what_cannot_be_pruned() -> None:
    lm, kv = tiny_lm("llama"), plain.formatted(tiny_lm("llama"), "kv", TEMPLATE)
    with pytest.raises(PromptError, match="no soft prompt"):
        score(lm, plain.formatted(lm, "none", TEMPLATE), rows())
    with pytest.raises(PromptError, match="only virtual token"):
        score(lm, replace(kv, prompt=random_prompt(lm, "kv", 1, 0)), rows())
    for keep in (0, 6):
        with pytest.raises(PromptError, match=r"(?s)cannot be kept.*1 to 5"):
            prune(lm, kv, rows(), Scores(1.0, (0.0,) * 5), keep)
    with pytest.raises(DataError, match=r"(?s)does not fit.*leave the row out"):
        score(lm, kv, records({"prompt": "x" * 250, "completion": "y"}))
    other = tiny_lm("gpt2")
    with pytest.raises(UnsupportedModelError, match="cannot be moved"):
        score(other, plain.formatted(other, "kv", TEMPLATE), rows())
    score(other, plain.formatted(other, "embedding", TEMPLATE), rows())
