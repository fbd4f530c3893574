"""Prompts from prompts: what stands where, what cannot be mixed, and what the card says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from softprompt.editing.compose import average, combine, compose, concatenate, resize, select
from softprompt.errors import (
    ConfigError,
    GeometryError,
    PromptError,
    SoftpromptError,
    UnsupportedModelError,
    WrongBaseError,
)
from softprompt.prefix.kv import Prefix
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card, Layout
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from tests.laws.oracle import plain_logits
from tests.prefix.test_rope import check_same, harvested
from tests.support.artifacts import FORMS, PLAIN, card, geometry, prompt
from tests.support.cases import random_prompt, text_ids
from tests.support.tiny import FAMILIES, tiny_lm

ROTARY = [family for family in FAMILIES if family not in ("gpt2", "opt")]


def noise(form: str, n_tokens: int = 4, seed: int = 0) -> SoftPrompt:
    return random_prompt(tiny_lm("llama"), form, n_tokens, seed)


def same(one: SoftPrompt, other: SoftPrompt) -> None:
    assert one.form == other.form
    for (name, mine), (wanted, theirs) in zip(one.tensors().items(), other.tensors().items(), strict=True):
        assert name == wanted
        assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_embedded_texts_join_to_the_text(family: str) -> None:
    lm, ids = tiny_lm(family), text_ids(8, 1)
    made = concatenate([EmbeddingPrompt(lm.embed(ids[:3])), EmbeddingPrompt(lm.embed(ids[3:]))])
    assert_close(plain_logits(lm, Prefix(made), [5, 6]), plain_logits(lm, Prefix(lead=tuple(ids)), [5, 6]))


@pytest.mark.parametrize("family", ROTARY)
def test_keys_and_values_join_behind_each_other(family: str) -> None:
    """As if each text had been read at the place where it comes to stand, without seeing the others."""
    lm = tiny_lm(family)
    texts = [text_ids(n, n) for n in (4, 3, 2)]
    made = concatenate([harvested(lm, ids, 0) for ids in texts], lm)
    wanted = [harvested(lm, ids, start) for ids, start in zip(texts, (0, 4, 7), strict=True)]
    assert isinstance(made, KVPrompt) and made.n_tokens == 9
    at = 0
    for part in wanted:
        check_same(sliced(made, range(at, at + part.n_tokens)), part)
        at += part.n_tokens


def sliced(prompt: SoftPrompt, tokens: range) -> KVPrompt:
    assert isinstance(prompt, KVPrompt)
    index = list(tokens)
    return KVPrompt(tuple(None if kv is None else (kv[0][:, index], kv[1][:, index]) for kv in prompt.layers))


@pytest.mark.parametrize("form", FORMS)
def test_joining_is_associative(form: str) -> None:
    lm, (a, b, c) = tiny_lm("llama"), [noise(form, n, n) for n in (2, 3, 4)]
    same(concatenate([a, concatenate([b, c], lm)], lm), concatenate([a, b, c], lm))
    same(concatenate([concatenate([a, b], lm), c], lm), concatenate([a, b, c], lm))
    same(concatenate([a], None), a)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-3, 3, width=16), min_size=1, max_size=4), st.integers(0, 999))
def test_weighted_sums(form: str, weights: list[float], seed: int) -> None:
    parts = [noise(form, 3, seed + i) for i in range(len(weights))]
    made = combine(parts, weights)
    for name, tensor in made.tensors().items():
        wanted = sum(w * part.tensors()[name] for w, part in zip(weights, parts, strict=True))
        assert_close(tensor, torch.as_tensor(wanted), rtol=1e-4, atol=1e-4)
    for name, tensor in average(parts).tensors().items():
        assert_close(tensor, torch.stack([part.tensors()[name] for part in parts]).mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_half_precision_are_made_in_full(dtype: torch.dtype) -> None:
    one = EmbeddingPrompt(torch.full((2, 6), 1.0, dtype=dtype))
    made = combine([one, one], [1.0, 2.0**-12])
    assert made.tensors()["embeddings"][0, 0] == 1 + 2.0**-12


def test_resized_embeddings() -> None:
    one = EmbeddingPrompt(torch.arange(4.0)[:, None].expand(4, 3))

    def first(n_tokens: int) -> list[float]:
        return resize(one, n_tokens).tensors()["embeddings"][:, 0].tolist()

    assert first(1) == [0]
    assert first(3) == [0, 2, 3]
    assert first(4) == [0, 1, 2, 3]
    assert first(10) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_resized_keys_and_values() -> None:
    """The first and the last tokens stay; what is left stands without a gap."""
    lm, ids = tiny_lm("llama"), text_ids(6, 2)
    whole = harvested(lm, ids, 0)
    made = resize(whole, 4, lm)
    assert isinstance(made, KVPrompt) and made.n_tokens == 4
    check_same(sliced(made, range(1)), sliced(whole, range(1)))
    for mine, theirs in zip(made.layers, whole.layers, strict=True):
        assert mine is not None and theirs is not None
        assert torch.equal(mine[1][:, 1:], theirs[1][:, 3:])
    back = concatenate([sliced(whole, range(2)), made], lm)
    check_same(sliced(back, range(3, 6)), sliced(whole, range(3, 6)))
    same(resize(whole, 6, lm), whole)
    long = resize(whole, 8, lm)
    assert isinstance(long, KVPrompt) and long.n_tokens == 8
    check_same(sliced(long, range(6)), whole)
    check_same(sliced(long, range(6, 8)), sliced(harvested(lm, ids, 6), range(2)))
    assert resize(whole, 1, lm).n_tokens == 1


def test_what_makes_no_sense_is_refused() -> None:
    lm, kv, embedding = tiny_lm("llama"), noise("kv"), noise("embedding")
    cases: list[tuple[Any, type[SoftpromptError], str]] = [
        (lambda: concatenate([kv, embedding], lm), PromptError, "different forms"),
        (lambda: average([embedding, kv]), PromptError, "different forms.*train both"),
        (lambda: combine([kv, noise("kv", 5)], [1, 1]), PromptError, r"(?s)lengths.*4 virtual.*5.*resize\(NAME, 4\)"),
        (lambda: average([embedding, EmbeddingPrompt(torch.ones(4, 7))]), WrongBaseError, "different base models"),
        (lambda: concatenate([kv, KVPrompt((kv_layer(kv),))], lm), WrongBaseError, "differ"),
        (lambda: concatenate([kv, kv]), ConfigError, "needs the base model.*--model"),
        (lambda: resize(kv, 3), ConfigError, "needs the base model"),
        (lambda: resize(kv, 300, lm), GeometryError, "context"),
        (lambda: resize(embedding, 0), PromptError, "at least one"),
        (lambda: concatenate([noise("kv", 200), noise("kv", 200), kv], lm), GeometryError, "context"),
    ]
    for call, kind, part in cases:
        with pytest.raises(kind, match=f"(?s){part}"):
            call()
    for family in ("gpt2", "opt"):
        learned = random_prompt(tiny_lm(family), "kv", 4, 0)
        with pytest.raises(UnsupportedModelError, match="cannot be moved"):
            concatenate([learned, learned], tiny_lm(family))
        same(average([learned, learned]), learned)


def kv_layer(prompt: SoftPrompt) -> Any:
    assert isinstance(prompt, KVPrompt)
    return prompt.layers[0]


SOURCES = {
    name: (
        random_prompt(tiny_lm("llama"), "kv", 4, seed),
        card(
            tiny_lm("llama").geometry,
            name=name,
            form="kv",
            n_tokens=4,
            sha256=f"{seed:064d}",
            layout={"follow": "Row:"},
            template={"kind": "text", "text": "Row: {text}"},
            labels=("x", "y"),
            metrics={"validation_loss": 1.0},
            recipe={"seed": seed},
            data={"train_sha256": f"rows {seed}"},
            license="mit",
        ),
    )
    for seed, name in enumerate(("a", "b", "c-1"))
}


def changed(name: str, **facts: Any) -> dict[str, tuple[SoftPrompt, Card]]:
    own, old = SOURCES[name]
    return SOURCES | {name: (own, old.model_copy(update=facts))}


def test_an_expression() -> None:
    lm, (a, b, c) = tiny_lm("llama"), [made for made, _ in SOURCES.values()]
    cases = {
        "a": a,
        "0.7*a + 0.3*b": combine([a, b], [0.7, 0.3]),
        "a - c-1": combine([a, c], [1, -1]),
        "average(a, b, c-1)": average([a, b, c]),
        "a | 2*(b - a)": concatenate([a, combine([b, a], [2, -2])], lm),
        "resize(a | b, 5)": resize(concatenate([a, b], lm), 5, lm),
    }
    for text, wanted in cases.items():
        made, written = compose(text, SOURCES, "new", lm=lm)
        same(made, wanted)
        assert written.method == {"name": "compose", "expression": text}


def test_the_card() -> None:
    made, written = compose("0.7*a + 0.3*b - 0*a", SOURCES, "new")
    assert (written.name, written.form, written.n_tokens) == ("new", "kv", made.n_tokens)
    assert written.base == tiny_lm("llama").geometry.to_dict()
    assert (written.layout, written.labels, written.license) == (Layout(follow="Row:"), ("x", "y"), "mit")
    assert written.template == {"kind": "text", "text": "Row: {text}"}
    assert written.metrics == {} and written.recipe == {}
    assert written.data["inputs"] == [{"name": name, "sha256": f"{i:064d}"} for i, name in enumerate("ab")]
    assert written.trained_on == [{"sha256": "rows 0", "seed": 0}, {"sha256": "rows 1", "seed": 1}]
    assert written.created and written.versions["softprompt"]
    again, (own, _) = compose("average(new, c-1)", SOURCES | {"new": (made, written)}, "more")[1], SOURCES["a"]
    assert [place["seed"] for place in again.trained_on] == [0, 1, 2], "through two compositions"
    assert compose("a + b", changed("b", license="gpl"), "new")[1].license is None
    assert own.n_tokens == 4


def test_frames_must_agree_or_be_chosen() -> None:
    for part, value in (("template", {}), ("layout", Layout(bos=True)), ("labels", ("x",))):
        sources = changed("b", **{part: value})
        with pytest.raises(ConfigError, match=rf"(?s)a, b: .*different {part}.*--template-of a"):
            compose("a + b", sources, "new")
        assert getattr(compose("a + b", sources, "new", template_of="b")[1], part) == value
        assert getattr(compose("a + b", sources, "new", template_of="a")[1], part) != value
        compose("a + c-1", sources, "new")
    with pytest.raises(ConfigError, match=r"(?s)template-of: not part of the expression.*\['a', 'b'\].*c-1"):
        compose("a + b", SOURCES, "new", template_of="c-1")


def test_other_bases_and_forms() -> None:
    other = geometry(base="other").to_dict()
    with pytest.raises(WrongBaseError, match=r"(?s)a, b: .*tiny-llama and other"):
        compose("a + b", changed("b", base=other), "new", template_of="a")
    with pytest.raises(PromptError, match=r"(?s)different forms.*a: kv and b: embedding"):
        compose("a + b", changed("b", form="embedding"), "new")


def test_a_result_that_fits_nothing() -> None:
    """The sliding window, and numbers that overflow."""
    small = geometry(windows=(None, 4, None))
    sources = {
        name: (prompt("embedding", small, 3, seed=i), card(small, form="embedding")) for i, name in enumerate("ab")
    }
    with pytest.raises(GeometryError, match="longer than the sliding window"):
        compose("a | b", sources, "new")
    with pytest.raises(GeometryError, match="NaN or infinite"):
        compose("1e300*a", SOURCES, "new")
    with pytest.raises(GeometryError, match=r"(?s)whole context.*< 256.*256"):
        compose("resize(a, 256)", SOURCES, "new", lm=tiny_lm("llama"))
    assert compose("resize(a, 255)", SOURCES, "new", lm=tiny_lm("llama"))[1].n_tokens == 255


def test_cards_of_strangers() -> None:
    """What is not of the right shape names no training rows."""
    odd = [None, 3, {}, {"sha256": 3}, {"sha256": "x", "seed": "7"}, {"sha256": "y", "seed": -1}, {"sha256": "z"}]
    for given_list, wanted in ((odd, ["x", "y", "z"]), ("rows", []), ({"sha256": "x"}, [])):
        places = card(PLAIN, data={"trained_on": given_list}, recipe={"seed": True}).trained_on
        assert places == [{"sha256": name, "seed": 0} for name in wanted]


def test_selection_moves_each_key_to_its_new_place() -> None:
    lm, ids = tiny_lm("llama"), text_ids(5, 4)
    whole = harvested(lm, ids, 0)
    made = select(whole, [0, 2, 4], lm)
    wanted = harvested(lm, [ids[i] for i in (0, 2, 4)], 0)
    assert_close(made.tensors()["layers.0.k"], wanted.tensors()["layers.0.k"], rtol=1e-4, atol=1e-4)
