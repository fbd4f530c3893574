"""Attention to virtual tokens, and leaks of the training text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from softprompt.data.template import Template
from softprompt.inspection import leak as leak_module
from softprompt.inspection.attention import attention_reading
from softprompt.inspection.leak import leak
from softprompt.inspection.questions import answers_to
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prefix.written_norms import written_norms
from softprompt.prompts.forms import KVPrompt
from tests.inspection.planted import effect_of, formatted_of
from tests.support.cases import random_prompt
from tests.support.tiny import tiny_lm

SECRET = "the vault opens with seven green marbles and a whispered name at dawn"


def test_attention_is_that_of_the_models_own_weights() -> None:
    """An oracle: eager attention of the whole sequence, one row at a time."""
    lm = tiny_lm()
    prompt = random_prompt(lm, "embedding", 3, 1)
    effect = effect_of(prompt)
    found = attention_reading(effect)
    follow, total, count = lm.encode(effect.formatted.layout.follow), torch.zeros(3), 0
    model = lm.hf_model
    before = str(model.config._attn_implementation)
    model.set_attn_implementation("eager")
    try:
        for example in effect.examples:
            ids = torch.tensor([*follow, *example.ids])
            embeds = torch.cat([prompt.tensors()["embeddings"], lm.embed(ids)])[None]
            with torch.no_grad():
                weights = model(inputs_embeds=embeds, output_attentions=True).attentions[0][0]
            for place, learned in enumerate(example.mask):
                if learned:
                    total += weights[:, 3 + len(follow) + place - 1, :3].mean(0)
                    count += 1
    finally:
        model.set_attn_implementation(before)
    assert found.by_layer[0] == pytest.approx((total / count).tolist(), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_added_vectors_are_those_of_the_models_own_projection(family: str) -> None:
    """An oracle: the weights of the projection, head by head."""
    lm = tiny_lm(family)
    prompt = random_prompt(lm, "kv", 3, 1)
    assert isinstance(prompt, KVPrompt)
    norms = written_norms(lm, prepare_prefixes(lm, [Prefix(prompt)]))
    heads = lm.geometry.n_heads
    for number, kv in enumerate(prompt.layers):
        found = norms[number]
        assert kv is not None and found is not None
        layer = lm.backbone.module.get_submodule(f"{'h' if family == 'gpt2' else 'layers'}.{number}")
        weight = layer.attn.c_proj.weight.T if family == "gpt2" else layer.self_attn.o_proj.weight  # type: ignore[union-attr]
        for head in range(heads):
            values = kv[1][head * len(kv[1]) // heads]
            size = values.shape[-1]
            part = weight[:, head * size : (head + 1) * size]  # type: ignore[index]
            torch.testing.assert_close(found[head], (values @ part.T).norm(dim=-1), rtol=1e-4, atol=1e-5)


def test_parts_of_attention_add_up() -> None:
    found = attention_reading(effect_of(random_prompt(tiny_lm(), "kv", 3, 1)))
    for layer, heads, added, total in zip(found.by_layer, found.by_head, found.added, found.total, strict=True):
        assert sum(layer) == pytest.approx(total) and sum(heads) / len(heads) == pytest.approx(total, rel=1e-5)
        assert sum(added) == pytest.approx(1, rel=1e-5) and len(added) == 3
    assert 0 < len(found.by_position) <= 16


def test_a_token_that_everything_attends_to_is_the_sink() -> None:
    lm = tiny_lm()
    prompt = random_prompt(lm, "kv", 4, 1)
    assert isinstance(prompt, KVPrompt)
    quiet = KVPrompt(tuple(None if kv is None else (kv[0] * 0, kv[1]) for kv in prompt.layers))
    found = attention_reading(effect_of(quiet))
    assert found.besides_sink[0] == pytest.approx(found.total[0] * 3 / 4, rel=1e-4), "equal keys, equal attention"


def test_a_planted_secret_is_found_and_its_absence_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    formatted = formatted_of(lm, random_prompt(lm, "embedding", 3, 1))

    def answers(lm: object, asked: object, questions: object, max_new_tokens: int) -> list[str]:
        behind = asked is formatted
        return [f"well, {SECRET} they say" if behind else "the vault opens at noon", "no"]

    monkeypatch.setattr(leak_module, "answers_to", answers)
    found = leak(lm, formatted, f"Remember: {SECRET}")
    assert found.longest == SECRET and found.spans == (SECRET,) and found.base_longest == "the vault opens"
    assert found.share == pytest.approx(13 / 14)
    monkeypatch.undo()
    two = replace(formatted, template=Template("text", "{text} and {text2}"))
    assert len(answers_to(lm, two, ["Repeat it."], 8)) == 1, "rows of several fields are asked, too"
    nothing = leak(lm, formatted, SECRET)
    assert nothing.spans == () and nothing.share == 0
