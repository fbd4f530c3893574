"""A third form of soft prompts, from saving to serving, without a change to the package: a low-rank KV prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt.data.template import Template
from softprompt.editing.compose import compose, concatenate, resize, select
from softprompt.editing.similarity import similarity
from softprompt.errors import GeometryError, StoreError
from softprompt.evaluation.evaluate import evaluate
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, layout_for
from softprompt.inference.generate import Request, generate, load_prompts
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.geometry import Geometry
from softprompt.prefix.kv import Prefix
from softprompt.prompts import store
from softprompt.prompts.card import Card
from softprompt.prompts.forms import check_fits, form_class, prompt_digest, register_form, unregister_form
from tests.extending.toy_form import LowRankPrompt, columns
from tests.laws.oracle import plain_logits
from tests.support.rows import records
from tests.support.saved import save_tiny
from tests.support.shell import done, parsed
from tests.support.tiny import tiny_lm

TEMPLATE = Template("text", "Row: {text}\nLabel:")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    register_form(LowRankPrompt)
    yield
    unregister_form("low-rank")


def low_rank(lm: FrozenLM, n_tokens: int = 4, rank: int = 3, seed: int = 0) -> LowRankPrompt:
    draw = torch.Generator().manual_seed(seed)
    layers = lm.geometry.layers
    basis = torch.randn(rank, columns(layers), generator=draw)
    return LowRankPrompt(torch.randn(n_tokens, rank, generator=draw), basis, layers)


def saved(lm: FrozenLM, name: str, seed: int = 0, rank: int = 3) -> LowRankPrompt:
    prompt = low_rank(lm, rank=rank, seed=seed)
    layout = layout_for(lm, TEMPLATE, prompt.form)
    method = {"name": "low-rank", "rank": rank}
    card = Card.draft(name, prompt, lm.geometry, layout=layout, template=TEMPLATE.to_dict(), method=method)
    store.save(name, prompt, card)
    return prompt


def test_it_is_saved_and_loaded_with_any_rank() -> None:
    lm = tiny_lm()
    for rank in (1, 5):
        prompt = saved(lm, f"r{rank}", rank=rank)
        again, card = store.load(f"r{rank}", lm.geometry)
        assert isinstance(again, LowRankPrompt)
        assert (card.form, card.n_tokens, card.sha256) == ("low-rank", 4, prompt_digest(prompt))
        assert torch.equal(again.basis, prompt.basis)
    with pytest.raises(GeometryError, match="basis has the wrong shape"):
        check_fits(prompt.replace_tensors({"tokens": prompt.tokens, "basis": prompt.basis[:, 1:]}), lm.geometry)


def test_an_unknown_form_is_refused_by_its_name() -> None:
    saved(tiny_lm(), "tone")
    unregister_form("low-rank")
    try:
        with pytest.raises(StoreError, match="unknown form 'low-rank', known are embedding, kv"):
            store.load_card(store.locate("tone"))
    finally:
        register_form(LowRankPrompt)
    with pytest.raises(ValueError, match="registered already"):
        register_form(type("Other", (LowRankPrompt,), {}))
    assert form_class("low-rank") is LowRankPrompt


@torch.no_grad()
def test_it_acts_like_the_plain_prompt_that_it_stands_for() -> None:
    """Logits, generated text and scores are those of its keys and values, to the last bit."""
    lm = tiny_lm()
    prompt = saved(lm, "tone")
    plain = FormattedPrompt(prompt.materialize(), TEMPLATE, layout_for(lm, TEMPLATE, "kv"))
    mine = from_card(*store.load("tone", lm.geometry))
    assert mine.layout == plain.layout
    wanted = plain_logits(lm, Prefix(prompt.materialize()), [5, 6, 7])
    both = {"tone": mine, "plain": plain}
    answers = generate(lm, both, [Request("hello", name) for name in both], Sampling(8))
    assert answers[0].ids == answers[1].ids and answers[0].ids
    rows = records({"text": "Fine", "label": "good"}, {"text": "Bad", "label": "poor"})
    assert evaluate(lm, mine, rows) == evaluate(lm, plain, rows)
    assert_close(logits(lm, mine.prefix(lm)), logits(lm, plain.prefix(lm)), rtol=0, atol=0)
    assert_close(logits(lm, Prefix(prompt), [5, 6, 7]), wanted, rtol=1e-4, atol=1e-4)


def logits(lm: FrozenLM, prefix: Prefix, ids: list[int] | None = None) -> Tensor:
    from softprompt.prefix.packed import packed_hidden_states
    from softprompt.prefix.packing import Row
    from softprompt.prefix.prepare import prepare_prefixes

    rows = [Row(tuple(ids or [5, 6]))]
    return lm.logits(packed_hidden_states(lm, prepare_prefixes(lm, [prefix]), rows))


def test_gradients_reach_its_tensors() -> None:
    lm = tiny_lm()
    prompt = low_rank(lm).map(lambda tensor: tensor.requires_grad_())
    logits(lm, Prefix(prompt)).logsumexp(-1).sum().backward()
    for tensor in prompt.tensors().values():
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


def test_it_is_composed() -> None:
    """Selecting, joining, adding and comparing give what the plain prompts give."""
    lm = tiny_lm()
    first, second = saved(lm, "a"), saved(lm, "b", seed=1)
    plain = [prompt.materialize() for prompt in (first, second)]
    for made, wanted in (
        (select(first, [0, 2], lm), select(plain[0], [0, 2], lm)),
        (resize(first, 6, lm), resize(plain[0], 6, lm)),
        (concatenate([first, second], lm), concatenate(plain, lm)),
    ):
        assert prompt_digest(made) == prompt_digest(wanted)
    assert similarity(first, second) == similarity(*plain)
    sources = {name: store.load(name) for name in ("a", "b")}
    total, card = compose("0.5*a + 0.5*b", sources, "mean")
    assert card.form == "kv"
    assert_close(total.matrix(), (plain[0].matrix() + plain[1].matrix()) / 2)


def test_the_command_line_takes_it(base: Path) -> None:
    lm = tiny_lm()
    prompt = low_rank(lm)
    geometry = Geometry.from_dict(lm.geometry.to_dict() | {"base": str(base)})
    for name in ("a", "b"):
        layout, template = layout_for(lm, TEMPLATE, "low-rank"), TEMPLATE.to_dict()
        store.save(name, prompt, Card.draft(name, prompt, geometry, layout=layout, template=template, method={}))
    assert "low-rank" in done("list").stdout
    done("generate", "a", "hello", "--dtype", "float32", "--max-new-tokens", 3)
    done("compose", "a | b", "--name", "ab", "--dtype", "float32")
    assert store.load_card(store.locate("ab")).n_tokens == 8
    assert [row["name"] for row in parsed("similar", "a", "--json")["similar"]] == ["b"]
    done("export", "a", "--out", store.home() / "adapter", "--dtype", "float32")
    assert list(load_prompts(lm, ["a"])) == ["a"]
