"""Attention to virtual tokens, and leaks of the training text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from softprompt.data.template import Template
from softprompt.inspection import leak as leak_module
from softprompt.inspection.attention import attention_reading
from softprompt.inspection.leak import leak
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

    def answers(lm: object, asked: object, questions: object) -> list[str]:
        behind = asked is formatted
        return [f"well, {SECRET} they say" if behind else "the vault opens at noon", "no"]

    monkeypatch.setattr(leak_module, "_answers", answers)
    found = leak(lm, formatted, f"Remember: {SECRET}")
    assert found.longest == SECRET and found.spans == (SECRET,) and found.base_longest == "the vault opens"
    assert found.share == pytest.approx(13 / 14)
    monkeypatch.undo()
    two = replace(formatted, template=Template("text", "{text} and {text2}"))
    assert len(leak_module._answers(lm, two, ["Repeat it."])) == 1, "rows of several fields are asked, too"
    nothing = leak(lm, formatted, SECRET)
    assert nothing.spans == () and nothing.share == 0
